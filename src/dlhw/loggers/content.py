"""What loggers get of a run. All of it is read from the files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dlhw.errors import UsageError
from dlhw.storage import stored
from dlhw.storage.directories import explanation, is_sweep
from dlhw.storage.identity import leaves
from dlhw.storage.record import Row

PICTURES = (".png", ".jpg", ".jpeg", ".gif")
"""The formats of figures that loggers can show."""
_NOT_LOGGED = ("resume", "logger")
"""Keys of the config that say nothing about the run."""
_NOT_NUMBERS = ("seed", "threads")
_TEXTS = ("status", "reason", "monitor", "stopped", "git_revision", "own_git_revision")


class LoggedRun:
    """A run as loggers know it.

    Args:
        directory: the run directory, which has a ``config.yaml``.

    Raise UsageError if the config is missing or invalid.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        config = stored.read_config(directory)
        if config is None:
            raise UsageError(explanation(directory))
        self.config = {name: value for name, value in config.items() if name not in _NOT_LOGGED}

    @property
    def experiment(self) -> str:
        """The name in the config."""
        return str(self.config["name"])

    @property
    def sweep(self) -> Path | None:
        """The directory of the sweep that the run belongs to; that of a confirmed setting is two levels above."""
        return next((path for path in list(self.directory.parents)[:2] if is_sweep(path)), None)

    @property
    def group(self) -> str | None:
        """The name that all runs of a sweep share; None outside of sweeps."""
        return None if self.sweep is None else f"{self.experiment}/{self.sweep.name}"

    @property
    def name(self) -> str:
        """The last part of the path: the time of a run; in a sweep also the values of the job."""
        return self.directory.relative_to((self.sweep or self.directory).parent).as_posix()

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters: all values of the config by dotted key. Lists are text."""
        return {
            name: str(value) if isinstance(value, list) else value
            for name, value in leaves(self.config)
            if value is not None
        }

    @property
    def tags(self) -> dict[str, str]:
        """Experiment, seed, dataset and sweep; a study that reads no data has the default dataset of its config."""
        target = str(self.config["dataset"].get("_target_"))
        tags = {"experiment": self.experiment, "seed": str(self.config["seed"]), "dataset": target.rpartition(".")[2]}
        return tags | ({"sweep": self.group} if self.group is not None else {})


@dataclass(frozen=True)
class Conclusion:
    """The result of a run that has ended."""

    status: str
    numbers: Mapping[str, float]
    """Losses and errors at the best epoch with the prefix ``best_``, numbers of a study or report, seconds."""
    texts: Mapping[str, str]
    """Status, monitored metric, reason of a failure, git revision."""
    figures: Mapping[str, Path]
    """The figures by name: ``curves``, and those in ``figures/``."""
    files: Sequence[Path]
    """Config, summary and tables."""


def conclusion(directory: Path) -> Conclusion | None:
    """Return the result of the run in a directory; None if it has not ended. Raise UsageError."""
    summary = stored.read_summary(directory)
    if not summary:
        return None
    best = {
        f"best_{name}": value
        for name, value in summary.get("best", {}).items()
        if name.startswith(("epoch", "train_", "val_", "test_"))
    }
    numbers = {
        name: float(value)
        for name, value in (summary | best).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_NUMBERS
    }
    texts = {name: str(summary[name]) for name in _TEXTS if summary.get(name) is not None}
    paths = [directory / "curves.png", *sorted((directory / "figures").glob("*"))]
    figures = {path.stem: path for path in paths if path.suffix in PICTURES and path.is_file()}
    tables = sorted((directory / "tables").glob("*.csv"))
    return Conclusion(
        summary["status"], numbers, texts, figures, [directory / "config.yaml", directory / "summary.json", *tables]
    )


class Started(NamedTuple):
    """What a logger already knows of a run."""

    identifier: str | None
    """By which the logger finds the run again; kept in the run directory. None if it needs none."""
    epochs: int
    """The number of epochs that it has; only later rows are sent."""


class Logger(Protocol):
    """A destination of one run. The methods are called in this order, by a single thread; any of them may fail."""

    @property
    def place(self) -> str:
        """What it sends to, such as a server or a project. A run has an identifier for each place."""

    def start(self, run: LoggedRun, identifier: str | None) -> Started:
        """Begin the run, or continue the one with this identifier."""

    def rows(self, rows: Sequence[Row]) -> None:
        """Send rows of metrics, in order, each once."""

    def end(self, conclusion: Conclusion) -> None:
        """Send the result. It is not called for an interrupted run."""

    def close(self) -> None:
        """Send what is buffered and release the files. It is also called after a failure."""
