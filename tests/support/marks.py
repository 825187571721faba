"""Mark some parameters of a test as slow or thorough; ``-m slow`` and ``-m thorough`` run these."""

from __future__ import annotations

import inspect
from typing import Any

import pytest


def slow(value: Any, *, name: str | None = None) -> Any:
    """Return a test parameter that is marked as slow; a tuple has the values of several arguments."""
    return _marked(pytest.mark.slow, value, name)


def thorough(value: Any, *, name: str | None = None) -> Any:
    """Return a test parameter that is marked as thorough; a tuple has the values of several arguments."""
    return _marked(pytest.mark.thorough, value, name)


def _marked(mark: pytest.MarkDecorator, value: Any, name: str | None) -> Any:
    if inspect.isfunction(value) and value.__name__.startswith("test"):  # it would never run
        raise TypeError(f"{value.__name__} is a test, not a parameter; mark it with pytest.mark.{mark.name}")
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, id=name, marks=mark)
