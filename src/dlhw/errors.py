"""Errors that are reported to the user in one line."""

from __future__ import annotations


class UsageError(ValueError):
    """An invalid or missing value. The message is one line: ``key=value: what is wrong; expected ...``."""


class NotEnoughMemory(RuntimeError):
    """Not enough memory. The message is one line that starts with what was computed."""


class ChecksFailed(RuntimeError):
    """A study's results differ from the expected values. The message names the failed checks."""


class TrainingFailed(RuntimeError):
    """Training cannot continue. The message names the step and the reason."""
