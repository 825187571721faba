"""Ray Tune: starting Ray, its search spaces, and trials that are ordinary runs (sheet D, question 2.3)."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dlhw.errors import UsageError
from dlhw.runtime import signals
from dlhw.runtime.files import locked
from dlhw.runtime.threads import usable_cores
from dlhw.search.space import Interval, Parameter, Point, Space, Values
from dlhw.storage import stored
from dlhw.storage.directories import runs_in
from dlhw.storage.record import Record, Row, directory_name
from dlhw.training.trainable import Trainable

if TYPE_CHECKING:
    from ray import tune

log = logging.getLogger("dlhw")

VALUE, LOWEST = "value", "lowest"
"""What a trial reports: its validation metric, and the lowest so far, by which trials are compared."""


def ray_function(domain: Interval | Values) -> tuple[str, list[Any]]:
    """Return the name of the function of ``ray.tune`` that makes a domain, and its arguments."""
    if isinstance(domain, Values):
        return "choice", [list(choices_by_value(domain))]
    if domain.integer:
        return "lograndint" if domain.log else "randint", [int(domain.low), int(domain.high) + 1]
    return "loguniform" if domain.log else "uniform", [domain.low, domain.high]


def choices_by_value(domain: Values) -> dict[bool | int | float | str, str]:
    """Return the texts of a list by value; the value of a list or mapping is its text."""
    values = ((_value_of(text), text) for text in domain.texts)
    return {value if isinstance(value, bool | int | float | str) else text: text for value, text in values}


def _value_of(text: str) -> Any:
    """Return the value of a text on the command line."""
    content: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    return content["value"]


@contextlib.contextmanager
def ray_running(address: str | None, resources: Mapping[str, float]) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster. Raise UsageError if no trial can run there."""
    import ray

    if ray.is_initialized():
        raise UsageError("study=ray_tune: cannot be a job of hydra/launcher=ray; choose another launcher")
    local: dict[str, Any] = {"num_cpus": usable_cores(), "include_dashboard": False} if address is None else {}
    try:
        _require_listening(address)
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"study.address={'null' if address is None else address}: cannot be used ({reason})"
        ) from error
    except SystemExit:  # Ray handles SIGTERM while it starts
        signals.reinstall()
        signal.raise_signal(signal.SIGTERM)
    signals.reinstall()  # Ray has replaced the handlers
    try:
        for name, wanted in resources.items():
            available = ray.cluster_resources().get(name.upper(), 0)
            if wanted > available:
                raise UsageError(f"study.{name}s={wanted:g}: Ray has {available:g} here")
        yield
    finally:
        ray.shutdown()


def _require_listening(address: str | None) -> None:
    """Raise OSError if nobody listens at an address HOST:PORT; Ray would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


@dataclass(frozen=True)
class Report:
    """What a trial reports after an epoch: its validation metric, and the lowest so far."""

    trial: str
    epoch: int
    value: float
    lowest: float


@dataclass(frozen=True)
class TrialRuns:
    """The runs of the trials: ``train`` is what Ray calls, the others translate Ray's configs."""

    trainable: Trainable
    space: Space
    directory: Path
    """It has one run directory per trial."""

    def train(self, config: Mapping[str, Any]) -> None:
        """Train a trial in a process of Ray, or continue it, and report every epoch once.

        The last epoch is reported after the run has finished, because the scheduler ends the trial then. A trial with
        the values of another one waits for it, and reports its epochs.
        """
        from ray import tune

        path = self.path(config)
        reported, lowest = 0, math.inf

        def report(row: Row, *, finished: bool = False) -> None:
            """Report an epoch. If the scheduler stops the trial, Ray ends the thread here."""
            nonlocal reported, lowest
            value, due = row[self.trainable.monitor], finished or row["epoch"] < self.trainable.epochs
            if due and row["epoch"] > reported and math.isfinite(value):
                reported, lowest = int(row["epoch"]), min(lowest, value)
                tune.report({"epoch": reported, VALUE: value, LOWEST: lowest})

        path.mkdir(parents=True, exist_ok=True)
        busy = f"{path}: waiting for another trial with the same values"
        try:
            with locked(path.with_name(f".{path.name}.lock"), wait=True, busy=busy):
                if not Record(path).finished:
                    for row in stored.read_metrics(path) or []:
                        report(row)
                    self.trainable(self.space.values(self.point(config)), path, report)
                for row in stored.read_metrics(path) or []:
                    report(row, finished=True)
        except UsageError as error:
            raise UsageError(str(error)) from error  # Ray cannot send its subclasses

    def point(self, config: Mapping[str, Any]) -> Point:
        """Return the point of a trial from Ray's config."""
        point: dict[str, float | int | str] = {}
        for parameter in self.space.parameters:
            domain, value = parameter.domain, config[parameter.key]
            if isinstance(domain, Values):
                text = choices_by_value(domain)[value]
                value = domain.texts.index(text) if domain.ordered else text
            point[parameter.name] = value
        return point

    def path(self, config: Mapping[str, Any]) -> Path:
        """Return the run directory of a trial."""
        values = self.space.values(self.point(config))
        return self.directory / directory_name([f"{key}={text}" for key, text in values.items()])

    def earlier(self) -> list[dict[str, Any]]:
        """Return the configs of the trials of an interrupted search, the oldest first. Raise UsageError."""
        configs = []
        paths = runs_in(self.directory) if self.directory.exists() else []
        for path in sorted(paths, key=lambda path: (path / "config.yaml").stat().st_mtime):
            content = stored.read_config(path) or {}
            stored.read_metrics(path)
            stored.read_summary(path)
            configs.append({parameter.key: _stored_value(content, parameter) for parameter in self.space.parameters})
            if self.path(configs[-1]) != path:
                raise UsageError(f"{path / 'config.yaml'}: has other values than its directory; restore the file")
        return configs


def _stored_value(content: Mapping[str, Any], parameter: Parameter) -> Any:
    """Return the value of a parameter in the config of a run, as in Ray's config."""
    value = functools.reduce(lambda part, name: part[name], parameter.key.split("."), content)
    if isinstance(parameter.domain, Interval):
        return value
    for choice, text in choices_by_value(parameter.domain).items():
        if _value_of(text) == value:
            return choice
    raise UsageError(f"resume: a trial has {parameter.key}={value}, which is not in study.space; start a new search")


@dataclass(frozen=True)
class Tuned:
    """The objects of Ray after a search, and the reports of all trials in the order of their arrival."""

    algorithm: Any
    scheduler: Any
    grid: tune.ResultGrid
    reports: Sequence[Report]
    resumed: bool


def tuned(
    runs: TrialRuns,
    *,
    storage: Path,
    seed: int,
    trials: int,
    min_epochs: int,
    eta: int,
    resources: Mapping[str, float],
) -> Tuned:
    """Run all trials with Ray, whose files are written to ``storage / "ray"``."""
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    epochs, monitor = runs.trainable.epochs, runs.trainable.monitor
    reports: list[Report] = []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the answer has the errors of trials

    class Listener(tune.Callback):  # type: ignore[misc]
        """Collects the reports, and logs a line when a trial ends."""

        ended = 0

        def on_trial_result(self, trial: Any, result: Any, **_: Any) -> None:
            reports.append(Report(trial.trial_id, result["epoch"], result[VALUE], result[LOWEST]))

        def on_trial_complete(self, **_: Any) -> None:
            self.ended += 1
            lowest = min((report.lowest for report in reports), default=math.nan)
            log.info("trials %d of %d, epochs %d, lowest %s %.4g", self.ended, trials, len(reports), monitor, lowest)

        on_trial_error = on_trial_complete

    def train(config: dict[str, Any]) -> None:
        runs.train(config)

    space = {
        parameter.key: getattr(tune, name)(*arguments)
        for parameter in runs.space.parameters
        for name, arguments in [ray_function(parameter.domain)]
    }
    earlier = runs.earlier()
    algorithm = OptunaSearch(seed=(seed + len(earlier)) % 2**32, points_to_evaluate=earlier or None)  # then new points
    scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=min_epochs, reduction_factor=eta)
    tuner = tune.Tuner(
        tune.with_resources(train, dict(resources)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=LOWEST,
            mode="min",
            num_samples=trials,
            search_alg=algorithm,
            scheduler=scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="ray", storage_path=str(storage.absolute()), verbose=0, callbacks=[Listener()]),
    )
    return Tuned(algorithm, scheduler, tuner.fit(), reports, resumed=bool(earlier))
