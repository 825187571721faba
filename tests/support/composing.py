"""The types of the fixtures ``compose`` and ``ask``."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from dlhw.runs.answer import Answer

Compose = Callable[..., DictConfig]
Ask = Callable[..., Answer]
