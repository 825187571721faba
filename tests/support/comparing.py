"""Compare runs bit for bit, and nested states up to a tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dlhw.storage import checkpoint


def same_state(one: object, other: object) -> bool:
    """Return whether two checkpoints are equal, with tensors compared bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_state(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two run directories have the same metrics and checkpoints, bit for bit; configs may differ."""
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    for name in ("last.pt", "best.pt"):
        states = [{**checkpoint.load(path / name), "run": None} for path in (one, other)]
        assert same_state(*states), name


def assert_equal(ours: Any, expected: Any, where: str) -> None:
    """Assert that nested states have the same structure and that their numbers agree to 1e-10."""
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        for name in expected:
            assert_equal(ours[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected), where
        for i, (one, other) in enumerate(zip(ours, expected, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, float):
        assert ours == pytest.approx(expected, abs=1e-10, rel=1e-10), where
    else:
        assert ours == expected, where
