"""The options of a comparison, the keys of ``conf/comparison/default.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dlhw.storage.record import Record
    from dlhw.views.comparison.ranking import Conclusion


@dataclass(frozen=True)
class Comparison:
    """What a comparison draws. ``conf/comparison/default.yaml`` describes each setting."""

    curves: list[str]
    x: Literal["epoch", "step"]
    log_x: bool
    overlay: str | None
    against: list[str]
    probes: list[str]

    def draw(self, record: Record, conclusion: Conclusion, *, title: str) -> list[str]:
        """Draw the figures. Return a note for each figure that was not drawn."""
        from dlhw.views.comparison.figures import draw  # imports matplotlib, which takes a second

        return draw(record, conclusion, self, title=title)
