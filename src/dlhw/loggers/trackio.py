"""Send a run to Trackio's database on this machine."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from typing import Any

from dlhw.loggers.content import Conclusion, LoggedRun, Started
from dlhw.storage.record import Row

_RENAMED = {"step": "steps"}
"""Columns whose names Trackio reserves."""


class Trackio:
    """A run of Trackio with the metrics, hyperparameters and figures of a run.

    A resumed run replaces its earlier log. Otherwise Trackio would have two copies of each epoch that is repeated.

    Args:
        project: the project that holds the run.
    """

    package = "trackio"

    def __init__(self, *, project: str) -> None:
        self.project = self.place = project
        self.run: Any = None
        self.epoch = 0

    def start(self, run: LoggedRun, identifier: str | None) -> Started:
        """Create a run of Trackio in place of the one with this name."""
        import trackio

        name = identifier or f"{run.experiment}/{run.name}"
        for earlier in list(trackio.Api().runs(self.project)) if identifier is not None else ():
            if earlier.name == name:
                earlier.delete()
        start = contextvars.Context().run  # trackio.init would finish the run that it began before in this context
        self.run = start(
            trackio.init,
            self.project,
            name=name,
            group=run.group,
            config=run.settings | run.tags,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        return Started(self.run.name, 0)

    def rows(self, rows: Sequence[Row]) -> None:
        """Send the rows; the step is the epoch."""
        for row in rows:
            self.epoch = int(row["epoch"])
            self.run.log({_RENAMED.get(name, name): value for name, value in row.items()}, step=self.epoch)

    def end(self, conclusion: Conclusion) -> None:
        """Send the result and the figures at the last epoch."""
        import trackio

        images = {f"figures/{name}": trackio.Image(str(path)) for name, path in conclusion.figures.items()}
        self.run.log({**conclusion.numbers, **conclusion.texts, **images}, step=self.epoch)

    def close(self) -> None:
        """Write what is buffered."""
        if self.run is not None:
            self.run.finish()
