"""A search by Ray Tune, and what its six objects do in it (sheet D, question 2.3)."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field, TypeAdapter

from dlhw.errors import TrainingFailed, UsageError
from dlhw.runtime.bounds import LARGEST_COUNT
from dlhw.runtime.options import Count
from dlhw.search.methods import Step
from dlhw.search.space import Interval, Parameter, Space, Values, listed
from dlhw.storage import stored
from dlhw.storage.answer import Answer, equal
from dlhw.storage.record import Record
from dlhw.training.ray_trials import Report, TrialRuns, Tuned, choices_by_value, ray_function, ray_running, tuned
from dlhw.training.trainable import Trainable
from dlhw.views.search import Searched, SearchedTrial, write_search

RANDOM_TRIALS = 10
"""Optuna's TPE draws points at random until it has so many results."""
_DOMAIN: TypeAdapter[Interval | list[bool | int | float | str]] = TypeAdapter(Interval | list[bool | int | float | str])


def ray_tune(
    *,
    trainable: Trainable,
    record: Record,
    seed: int,
    space: dict[str, Any],
    trials: Count,
    min_epochs: Count,
    eta: Annotated[int, Field(ge=2, le=LARGEST_COUNT)],
    cpus: Annotated[float, Field(ge=0.01)],
    gpus: Annotated[float, Field(ge=0)],
    address: str | None,
) -> Answer:
    """Search with TPE (Optuna) and asynchronous successive halving (ASHA) on Ray, on this machine or a cluster.

    Args:
        space: for each key a list of values or an interval, a mapping with ``low``, ``high``, ``log`` and ``integer``.
        trials: their number.
        min_epochs: the smallest number of epochs after which a trial may be stopped.
        eta: one of eta trials is trained further.
        cpus: CPU cores of each trial.
        gpus: GPUs of each trial; with a fraction several trials share one.
        address: that of a running cluster, or ``auto``; None starts Ray on this machine.
    """
    _require_ray()
    if min_epochs > trainable.epochs:
        raise UsageError(f"study.min_epochs={min_epochs}: must be at most trainer.epochs={trainable.epochs}")
    if not space:
        raise UsageError("study.space: empty; expected keys such as optimizer.lr")
    parameters = Space([Parameter(key, _domain(key, values)) for key, values in space.items()])
    for number, point in enumerate(parameters.examples()):
        trainable.validate(parameters.values(point), build=number == 0)
    runs = TrialRuns(trainable, parameters, record.path.absolute() / "trials")
    powers = (min_epochs * eta**power for power in itertools.count())
    rungs = list(itertools.takewhile(lambda rung: rung < trainable.epochs, powers))
    resources = {"cpu": cpus, "gpu": gpus}
    with ray_running(address, resources):
        result = tuned(
            runs,
            storage=record.path,
            seed=seed,
            trials=trials,
            min_epochs=min_epochs,
            eta=eta,
            resources=resources,
        )
    return _answer(runs, record, result, rungs)


def _require_ray() -> None:
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UsageError(f'study=ray_tune: needs Ray ({error}); install it with pip install -e ".[ray]"') from error


def _domain(key: str, values: Any) -> Interval | Values:
    """Return the domain of a key. Raise UsageError if it is empty or neither a list nor an interval."""
    try:
        domain = _DOMAIN.validate_python(values)
    except pydantic.ValidationError as error:
        expected = "a list of numbers and texts, or an interval such as {low: 0.001, high: 1, log: true}"
        raise UsageError(f"study.space: {key}: expected {expected}") from error
    if isinstance(domain, Interval):
        _require_valid(key, domain)
        return domain
    listed_values = listed([value if isinstance(value, str) else str(value).lower() for value in domain])
    if not domain or len(choices_by_value(listed_values)) < len(domain):
        raise UsageError(f"study.space: {key}: expected a list of different values")
    return listed_values


def _require_valid(key: str, interval: Interval) -> None:
    """Raise UsageError for an interval that is empty, or whose integers are not."""
    low, high = interval.low, interval.high
    if not (low < high and math.isfinite(high - low)) or (interval.log and low <= 0):
        raise UsageError(f"study.space: {key}: expected finite low < high, above 0 with log")
    if interval.integer and not (low.is_integer() and high.is_integer() and max(-low, high) <= LARGEST_COUNT):
        raise UsageError(
            f"study.space: {key}: with integer, low and high must be whole numbers of at most {LARGEST_COUNT}"
        )


def searched(runs: TrialRuns, result: Tuned, rungs: Sequence[int]) -> Searched:
    """Return the trials that have results, and these results at the rungs, as those of a search of dlhw.

    An epoch that two trials report, because they have the same values, counts once.
    """
    by_trial: dict[str, list[Report]] = {}
    for report in result.reports:
        by_trial.setdefault(report.trial, []).append(report)
    trials: dict[str, SearchedTrial] = {}
    for number, single in enumerate(result.grid):
        reports = by_trial.get(single.metrics.get("trial_id", ""), []) if single.metrics else []
        if not reports or single.config is None:  # it failed in its first epoch
            continue
        last, path = reports[-1], runs.path(single.config)
        ended = stored.read_summary(path).get("final", {}).get("epoch") == last.epoch
        trials[last.trial] = SearchedTrial(
            number=number,
            bracket=0,
            point=runs.point(single.config),
            runs=[path],
            rungs=[report.epoch for report in reports if report.epoch in rungs or report is last],
            curve={report.epoch: report.value for report in reports},
            value=math.inf if single.error else last.lowest,
            state="failed" if single.error else "complete" if ended else "stopped",
        )
    steps, epochs_of = [], dict.fromkeys((trial.runs[0] for trial in trials.values()), 0)
    for report in result.reports:
        if trial := trials.get(report.trial):
            epochs_of[trial.runs[0]] = max(epochs_of[trial.runs[0]], report.epoch)
            if report.epoch in trial.rungs:
                steps.append(Step(sum(epochs_of.values()), trial.number, report.epoch, report.lowest))
    return Searched("ray_tune", runs.trainable.monitor, runs.space, list(trials.values()), steps)


def _answer(runs: TrialRuns, record: Record, result: Tuned, rungs: Sequence[int]) -> Answer:
    """Write the table and the figures, and describe the six objects. Raise TrainingFailed if all trials failed."""
    search, grid = searched(runs, result, rungs), result.grid
    best = search.best
    if best is None:
        raise TrainingFailed(f"all trials failed: {'; '.join(sorted(set(map(_reason, grid.errors))))}")
    notes = write_search(record, search, title="ray_tune: search with TPE and ASHA")
    rows = {int(row["epoch"]): row for row in stored.read_metrics(best.runs[0]) or []}
    differing = sum(
        epoch not in rows or not math.isclose(rows[epoch][search.monitor], value, rel_tol=1e-6)
        for epoch, value in best.curve.items()
    )
    row = min((rows[epoch] for epoch in best.curve if epoch in rows), key=lambda row: row[search.monitor])
    frame = grid.get_dataframe()
    return Answer(
        numbers={
            "trials": len(grid),
            "failed_trials": grid.num_errors,
            "epochs": search.steps[-1].total_epochs,
            "epochs_without_stopping": len(grid) * runs.trainable.epochs,
            "best_run": best.runs[0].relative_to(record.path.absolute()).as_posix(),
            "best_epoch": int(row["epoch"]),
            **{f"best_{name}": value for name, value in row.items() if name.startswith(("val_", "test_"))},
        },
        checks=[equal("best run: epochs whose metric differs between Ray and metrics.csv", differing, 0)],
        tables={"result_grid": [dict(zip(frame, values, strict=True)) for values in frame.to_numpy().tolist()]},
        messages=[*_six_objects(runs, result, search, rungs, frame.shape), *notes],
    )


def _six_objects(
    runs: TrialRuns, result: Tuned, search: Searched, rungs: Sequence[int], shape: tuple[int, int]
) -> list[str]:
    """Return lines about the six objects, with their values in this search."""
    best, grid, first = search.best, result.grid, search.trials[0]
    assert best is not None
    by_number = {trial.number: trial for trial in search.trials}
    lengths = [max(trial.curve) for trial in search.trials]
    stopped = [f"{lengths.count(rung)} of {sum(length >= rung for length in lengths)} after {rung}" for rung in rungs]
    return [
        f"1. trainable: a function that trains a network and reports {search.monitor} after every epoch",
        f"   called with {grid[first.number].config}",
        f"   epoch {min(first.curve)}: {first.curve[min(first.curve)]:.4g}",
        "2. search space: a distribution for each key",
        *(f"   {parameter.key}: {_call_text(parameter.domain)}" for parameter in runs.space.parameters),
        f"3. trials: {len(grid)} calls of the trainable, {grid.num_errors} of them with an error",
        *(
            f"   {number:>3}  {_trial_text(search, by_number[number])}"
            if number in by_number and not single.error
            else f"   {number:>3}  failed    {_reason(single.error) if single.error else 'without a result'}"
            for number, single in enumerate(grid)
        ),
        f"4. search algorithm: {type(result.algorithm).__name__}, Optuna's TPE",
        "   first the trials before the interruption" if result.resumed else f"   {_medians(search)}",
        f"5. scheduler: {type(result.scheduler).__name__} (ASHA)",
        f"   stopped: {', '.join(stopped)} epochs" if rungs else "   stops no trial, because there is no rung",
        f"6. result grid: a data frame of {shape[0]} rows and {shape[1]} columns, in tables/result_grid.csv",
        f"   best: trial {best.number}, {best.value:.4g} with {search.text(best)}",
    ]


def _trial_text(search: Searched, trial: SearchedTrial) -> str:
    return f"{trial.state:<8}  epochs {max(trial.curve):<3}  {trial.value:<8.4g}  {search.text(trial)}"


def _medians(search: Searched) -> str:
    """Return the median metric of the random trials and that of the others, whose values TPE proposed."""
    parts = {
        f"the first {RANDOM_TRIALS} trials": [t.value for t in search.trials if t.number < RANDOM_TRIALS],
        "the others": [t.value for t in search.trials if t.number >= RANDOM_TRIALS],
    }
    medians = [f"{statistics.median(values):.4g} for {name}" for name, values in parts.items() if values]
    return f"median of the lowest {search.monitor}: {', '.join(medians)}"


def _reason(error: Exception) -> str:
    """Return the last line of an error of a trial, whose text has a traceback."""
    return str(error).strip().splitlines()[-1].removeprefix("dlhw.errors.UsageError: ")


def _call_text(domain: Interval | Values) -> str:
    name, arguments = ray_function(domain)
    return f"tune.{name}({', '.join(map(str, arguments))})"
