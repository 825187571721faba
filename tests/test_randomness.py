"""Keyed random generators: reproducible, independent of each other and of the global generator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dlhw.runtime.randomness import generator, key

PURPOSES = st.lists(st.text(max_size=5) | st.integers(0, 100), max_size=3)
SEEDS = st.integers(0, 2**32)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, "order", 1), 7_021_862_330_116_196_507),
        ((0, "init"), 5_184_189_234_732_532_942),
        ((7, "split"), 8_614_704_755_402_029_884),
    ],
    ids=str,
)
def test_keys_do_not_change_between_versions(arguments: tuple[int, str], expected: int) -> None:
    assert key(*arguments) == expected  # a different key would change published results


@given(seed=SEEDS, purpose=PURPOSES)
def test_key_is_a_valid_seed_for_torch(seed: int, purpose: list[str | int]) -> None:
    assert 0 <= key(seed, *purpose) < 2**63
    assert key(seed, *purpose) == key(seed, *purpose)


@given(one=st.tuples(SEEDS, PURPOSES), other=st.tuples(SEEDS, PURPOSES))
def test_different_seeds_or_purposes_have_different_keys(
    one: tuple[int, list[str | int]], other: tuple[int, list[str | int]]
) -> None:
    assume(one != other)
    assert key(one[0], *one[1]) != key(other[0], *other[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("order", 1), ("order", "1")),
        (("a", "b"), ("a', 'b",)),
        (("order", 1, 2), ("order", 12)),
        ((), ("",)),
    ],
    ids=str,
)
def test_similar_purposes_have_different_keys(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert key(0, *one) != key(0, *other)


@given(seed=SEEDS, purpose=PURPOSES)
def test_generators_are_reproducible(seed: int, purpose: list[str | int]) -> None:
    assert torch.equal(
        torch.rand(4, generator=generator(seed, *purpose)), torch.rand(4, generator=generator(seed, *purpose))
    )


@pytest.mark.parametrize("other", [(0, "order", 2), (1, "order", 1), (0, "dropout", 1)], ids=str)
def test_generators_of_different_purposes_are_uncorrelated(other: tuple[int, str, int]) -> None:
    count = 10_000
    one = torch.randn(count, generator=generator(0, "order", 1), dtype=torch.float64)
    two = torch.randn(count, generator=generator(*other), dtype=torch.float64)
    # the correlation of n independent pairs has the standard deviation 1/sqrt(n)
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 5 / math.sqrt(count)


def test_generators_and_the_global_generator_are_independent() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch.rand(5, generator=generator(0, "order"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(torch.rand(5, generator=generator(0, "order")), first)
