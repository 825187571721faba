"""The options of a comparison, the keys of ``conf/comparison/default.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Comparison:
    """What a comparison draws. ``conf/comparison/default.yaml`` describes each setting."""

    curves: list[str]
    x: Literal["epoch", "step"]
    log_x: bool
    overlay: str | None
    against: list[str]
    probes: list[str]
