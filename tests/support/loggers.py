"""Read back what TensorBoard and MLflow store, and loggers that record their calls, fail or hang."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from dlhw.loggers.content import Conclusion, LoggedRun, Started
from dlhw.storage.record import Row


def events(directory: Path) -> Any:
    """Return TensorBoard's reader of the events of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return reader.Reload()


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points (step, value) of each tag, as TensorBoard shows them."""
    reader = events(directory)
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def single(value: float) -> float:
    """Round a number to the precision in which TensorBoard stores it."""
    result: float = struct.unpack("f", struct.pack("f", value))[0]
    return result


def mlflow_client(at: Path) -> Any:
    """Return the client of MLflow's default database in a folder."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{at / 'mlflow.db'}")


class Recorder:
    """A logger that records its calls, and fails or hangs in the method ``broken``."""

    package: ClassVar[str | None] = None
    made: ClassVar[list[Recorder]] = []
    released: ClassVar[threading.Event] = threading.Event()

    def __init__(self, *, broken: str = "", hangs: bool = False) -> None:
        self.broken, self.hangs = broken, hangs
        self.place = "here"
        self.calls: list[str] = []
        self.logged: list[Row] = []
        self.conclusion: Conclusion | None = None
        self.made.append(self)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken and self.hangs:
            assert self.released.wait(600)
        elif name == self.broken:
            raise SystemExit(f"no space left\nin {name}")

    def start(self, run: LoggedRun, identifier: str | None) -> Started:
        self._call("start")
        return Started("an id", 0)

    def rows(self, rows: Sequence[Row]) -> None:
        self._call("rows")
        self.logged += rows

    def end(self, conclusion: Conclusion) -> None:
        self._call("end")
        self.conclusion = conclusion

    def close(self) -> None:
        self._call("close")
