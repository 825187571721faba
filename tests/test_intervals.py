"""Interval estimates equal their definitions and those of scipy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, sem

from dlhw.intervals import mean_and_standard_error, score_interval, wilson


def test_score_interval_equals_published_value() -> None:
    low, high = score_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))  # Wilson (1927), tables


@pytest.mark.parametrize(("successes", "trials"), [(3, 40), (2.5, 5)])  # the second is a mean of shares
def test_score_interval_ends_satisfy_their_definition(successes: float, trials: int) -> None:
    for end in score_interval(successes, trials):
        assert abs(end - successes / trials) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / trials))


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 40), (7, 7)])
def test_wilson_equals_scipy_at_and_between_the_limits(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.9, method="wilson")
    assert wilson(successes, trials, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 20_000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_equals_scipy_for_random_counts(count: int, data: st.DataObject, confidence: float) -> None:
    right = data.draw(st.integers(0, count))
    interval = binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert wilson(right, count, confidence) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(1, 2), (131, 153), (140, 153), (9, 10), (9_800, 10_000)])
def test_wilson_ends_are_two_standard_errors_from_the_proportion(right: int, count: int) -> None:
    confidence = math.erf(2 / math.sqrt(2))
    for end in wilson(right, count, confidence):
        assert abs(right / count - end) == pytest.approx(2 * math.sqrt(end * (1 - end) / count), rel=1e-9)


def test_wilson_ends_are_exact() -> None:
    assert wilson(0, 7, 0.95)[0] == 0.0
    assert wilson(7, 7, 0.95)[1] == 1.0
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_score_interval_ends_are_exact() -> None:
    for trials in range(1, 200):
        assert score_interval(0, trials)[0] == 0.0
        assert score_interval(trials, trials)[1] == 1.0
    assert score_interval(0, 0) == (0.0, 1.0)


def test_mean_and_standard_error_equal_scipy() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 9.0]], dtype=torch.float64)
    mean, error = mean_and_standard_error(values)
    assert mean.tolist() == pytest.approx([7 / 3, 5.0])
    assert error.tolist() == pytest.approx(sem(values.numpy(), axis=1).tolist())
