"""Send a run to Weights & Biases."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from typing import Any, Literal

from dlhw.loggers.content import Conclusion, LoggedRun, Started
from dlhw.runtime.downloads import require_answer
from dlhw.storage.record import Row


class WandB:
    """A run of wandb with the metrics, hyperparameters, tags and figures of a run.

    The id of wandb's run is kept, so a resumed run continues it. An offline run cannot be continued: all
    rows are written again, and its files replace the earlier ones.

    Args:
        project: the project that holds the run.
        entity: the user or team that owns the project; None for your default.
        mode: ``auto`` is online if you are logged in and the server answers, else offline.
    """

    package = "wandb"

    def __init__(self, *, project: str, entity: str | None, mode: Literal["auto", "online", "offline"]) -> None:
        self.project = project
        self.entity = entity
        self.mode = mode
        self.run: Any = None
        self.epoch = 0
        self.exit_code = 1

    @property
    def place(self) -> str:
        """The project with its owner."""
        return "/".join(filter(None, [self.entity, self.project]))

    def start(self, run: LoggedRun, identifier: str | None) -> Started:
        """Create a run of wandb, or continue the one with this id."""
        import wandb

        identifier = identifier or secrets.token_hex(8)
        online = self.mode == "online" or (self.mode == "auto" and _is_logged_in(wandb) and _answers())
        if not online:
            for folder in (run.directory / "wandb").glob(f"offline-run-*-{identifier}"):
                shutil.rmtree(folder)
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=identifier,
            name=run.name,
            group=run.group,
            dir=str(run.directory),
            config=run.config,
            tags=[run.tags["dataset"], run.experiment[:64], f"seed {run.tags['seed']}"],
            mode="online" if online else "offline",
            resume="allow",
            reinit="create_new",  # several runs may be trained at once
            settings=wandb.Settings(silent=True, console="off", disable_code=True, x_disable_stats=True),
        )
        self.epoch = int(self.run.summary.get("epoch") or 0)
        return Started(identifier, self.epoch)

    def rows(self, rows: Sequence[Row]) -> None:
        """Send the rows; the step is the epoch."""
        for row in rows:
            self.epoch = int(row["epoch"])
            self.run.log(dict(row), step=self.epoch)

    def end(self, conclusion: Conclusion) -> None:
        """Send the figures, and the result as wandb's summary."""
        import wandb

        images = {f"figures/{name}": wandb.Image(str(path)) for name, path in conclusion.figures.items()}
        if images:
            self.run.log(images, step=self.epoch)
        self.run.summary.update({**conclusion.numbers, **conclusion.texts})
        self.exit_code = 0 if conclusion.status == "finished" else 1

    def close(self) -> None:
        """Finish wandb's run; it counts as crashed unless the run has finished."""
        if self.run is not None:
            self.run.finish(exit_code=self.exit_code)


def _is_logged_in(wandb: Any) -> bool:
    """Return whether wandb knows a key; it never asks for one."""
    with contextlib.suppress(wandb.Error):
        return bool(wandb.login(prompt=False, verify=False))
    return False


def _answers() -> bool:
    """Return whether the server of wandb accepts connections."""
    try:
        require_answer(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    except OSError:
        return False
    return True
