"""Write a run for TensorBoard, into the directory ``tensorboard/`` of the run."""

from __future__ import annotations

import itertools
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlhw.loggers.content import Conclusion, LoggedRun, Started
from dlhw.storage.record import Row
from dlhw.storage.stored import read_seconds

FOLDER = "tensorboard"
_OF_THE_OPTIMIZER = ("lr", "step")
_PARTS = {"train": "train", "val": "validation", "test": "test"}


class TensorBoard:
    """Event files with the metrics, hyperparameters, config, result and figures of a run.

    The files are replaced whenever a run continues, because rows before its checkpoint may be missing, and those
    after it are computed again. A new file begins with the note that makes a running TensorBoard forget the old one.
    """

    package = "tensorboard"
    place = ""

    def start(self, run: LoggedRun, identifier: str | None) -> Started:
        """Begin new event files with the hyperparameters and the config."""
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.run, self.epoch = run, 0
        folder = run.directory / FOLDER
        earlier = list(folder.glob("events.out.tfevents.*"))
        self.writer = typing.cast(Any, SummaryWriter(str(folder), purge_step=0))
        for path in earlier:
            path.unlink()
        shown = f"result/best_{run.config['trainer'].get('monitor')}"
        experiment, session_start, self.session_end = hparams(run.settings | run.tags, {shown: None})
        for summary in (experiment, session_start):
            self.writer.file_writer.add_summary(summary)
        self.writer.add_text("config", _as_code(OmegaConf.to_yaml(OmegaConf.create(run.config))))
        return Started(None, 0)

    def rows(self, rows: Sequence[Row]) -> None:
        """Add a point per row and column. The time of earlier epochs is derived from their seconds."""
        seconds = read_seconds(self.run.directory) if self.epoch == 0 else {}
        later = list(itertools.accumulate((seconds.get(int(row["epoch"]), 0.0) for row in rows[:0:-1]), initial=0.0))
        now = time.time()
        for row, before in zip(rows, reversed(later), strict=True):
            self.epoch = int(row["epoch"])
            for column, value in row.items():
                if column != "epoch":
                    self.writer.add_scalar(metric_tag(column), value, self.epoch, walltime=now - before)
        self.writer.flush()

    def end(self, conclusion: Conclusion) -> None:
        """Add the result and the figures at the last epoch."""
        for name, value in conclusion.numbers.items():
            self.writer.add_scalar(f"result/{name}", value, self.epoch)
        lines = "\n".join(f"{name}: {text}" for name, text in conclusion.texts.items())
        self.writer.add_text("result", _as_code(lines), self.epoch)
        for name, path in conclusion.figures.items():
            self._add_figure(f"figures/{name}", path)
        if conclusion.status == "finished":
            self.writer.file_writer.add_summary(self.session_end)

    def _add_figure(self, tag: str, path: Path) -> None:
        """Add the bytes of a figure; ``add_image`` would decode and compress it again."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(encoded_image_string=path.read_bytes(), width=width, height=height, colorspace=3)
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), self.epoch)

    def close(self) -> None:
        """Write what is buffered."""
        if hasattr(self, "writer"):
            self.writer.close()


def metric_tag(column: str) -> str:
    """Return the tag of a column of metrics.csv; TensorBoard groups by its first part.

    ``val_loss`` becomes ``validation/loss``, ``lr`` ``optimizer/lr``, and ``weight_norm`` ``model/weight_norm``.
    """
    part, _, metric = column.partition("_")
    if part in _PARTS:
        return f"{_PARTS[part]}/{metric}"
    return f"optimizer/{column}" if column in _OF_THE_OPTIMIZER else f"model/{column}"


def _as_code(text: str) -> str:
    """Return Markdown that shows the text unchanged."""
    return "".join(f"    {line}\n" for line in text.splitlines())
