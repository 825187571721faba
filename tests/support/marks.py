"""Parameters of tests of which the quick run takes a part; ``-m slow`` runs the others."""

from __future__ import annotations

from typing import Any

import pytest


def slow(value: Any, *, name: str | None = None) -> Any:
    """A parameter whose test is slow; a tuple has the values of several arguments."""
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, id=name, marks=pytest.mark.slow)
