"""Mark some parameters of a test as slow; ``-m slow`` runs these."""

from __future__ import annotations

from typing import Any

import pytest


def slow(value: Any, *, name: str | None = None) -> Any:
    """Return a test parameter that is marked as slow; a tuple has the values of several arguments."""
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, id=name, marks=pytest.mark.slow)
