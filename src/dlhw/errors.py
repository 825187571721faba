"""The errors that a person is told in one line."""

from __future__ import annotations


class UsageError(ValueError):
    """Something a person wrote or left out. The message is one line: what, where, what is legal."""
