"""The sweeper that searches: ``hydra/sweeper=search`` trains the trials that a method chooses, and continues the best.

A trial that a method trains further is the same run, which resumes from its last checkpoint with more epochs. An
interrupted search starts again: the method proposes the same trials, and the search reads the results of those that
are already trained from their directories.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from optuna.trial import TrialState
from pydantic import Field

from dlhw.cli.build import checked_arguments
from dlhw.cli.rules import require_resolvable
from dlhw.errors import UsageError
from dlhw.runtime.options import Count
from dlhw.runtime.progress import clock_time, repeated
from dlhw.search.methods import STOPPING, Budget, Method, Plan, Request, Step, Trial, drive, search
from dlhw.search.space import Point
from dlhw.search.study_file import NAME, StudyFile
from dlhw.storage import stored
from dlhw.storage.identity import identity, leaves, without_epochs
from dlhw.storage.record import directory_name
from dlhw.sweeps import expansion
from dlhw.sweeps.job_sweeper import JobSweeper
from dlhw.sweeps.jobs import JobDirectories, PlannedJob
from dlhw.sweeps.spaces import read_space
from dlhw.sweeps.trial_runs import TrialRuns, epochs_of_config, outcome, trained_epochs
from dlhw.views.search import Searched, SearchedTrial, conclude_search

log = logging.getLogger("dlhw")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a search, see :class:`dlhw.search.methods.Plan`.

    ``epochs`` is None for ``trainer.epochs``, and ``total_epochs`` counts the epochs of all seeds.
    """

    method: Method
    trials: Count | None
    epochs: Count | None
    total_epochs: Count | None
    min_epochs: Count
    eta: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    parallel: Count | None


class _Unfinished(Exception):
    """The search cannot go on: a run has neither finished nor failed, or all trials have the same mistake."""


class Search(JobSweeper):
    """Trains the trials that a method chooses, in the directory of a sweep.

    Args:
        params: the space, see :func:`dlhw.sweeps.spaces.read_space`.
        space: the space if ``params`` are the values of a grid.
        fail_fast: stop after the first job that fails.
        confirm: the number of other seeds with which the best trial is trained at the end.
        one_at_a_time: for grids; must be empty.
        options: those of :class:`Options`.
    """

    def __init__(
        self,
        params: Any = None,
        *,
        space: Any = None,
        fail_fast: bool = False,
        confirm: int | None = None,
        one_at_a_time: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(params=params, space=space, fail_fast=fail_fast, confirm=confirm)
        if one_at_a_time:
            raise UsageError("hydra.sweeper.one_at_a_time: for grids only; expected [] with hydra/sweeper=search")
        self._options = Options(**checked_arguments(Options, options, prefix="hydra.sweeper"))
        self._trials: list[TrialRuns] = []
        self._jobs: dict[Path, PlannedJob] = {}
        self._steps: list[Step] = []
        self._epochs: dict[Path, int] = {}  # of each run, as far as the search has used them
        self._trained = 0  # epochs that were trained in this process

    def prepare(self, arguments: list[str]) -> None:
        """Read the space, validate its values and plan the budget. Raise UsageError."""
        seeds = {"seed": self.params["seed"]} if "seed" in self.params else {}
        loader = self.context.config_loader
        self._declared = read_space({**seeds, **(self.space or self.params)}, arguments, loader=loader)
        for parameter in self._declared.space.parameters:
            if reason := _NOT_SEARCHED.get(parameter.key.lstrip("+")):
                raise UsageError(f"{parameter.key}: invalid in the space of a search, {reason}")
        jobs = self.compose([self._job(point, None) for point in self._declared.space.examples()])
        cfg = next(job.config for job in jobs if job.config is not None)
        if cfg.get("debug"):
            raise UsageError("debug=true: invalid with hydra/sweeper=search; expected one run, or a grid")
        if cfg.study.get("_target_") is not None:
            raise UsageError(f"hydra/sweeper=search: {cfg.name} is a study, which has no validation metric")
        self._seeds: Sequence[str | None] = self._declared.seeds or (None,)
        self._monitor = str(cfg.trainer.monitor)
        self._plan = self._planned(cfg)
        self._searching = search(self._plan, self._declared.space)
        self.launcher_for(1)

    def _planned(self, cfg: DictConfig) -> Plan:
        """Return the plan for one seed. Raise UsageError for a budget that is smaller than a trial."""
        options = vars(self._options)
        epochs = options["epochs"] or cfg.trainer.epochs
        if options["min_epochs"] > epochs:
            raise UsageError(
                f"hydra.sweeper.min_epochs={options['min_epochs']}: must be at most the {epochs} epochs of a trial"
            )
        seeds, total = len(self._seeds), options["total_epochs"]
        if total is not None and total < epochs * seeds:
            trial = f"{epochs} epochs" + (f" with each of {seeds} seeds" if seeds > 1 else "")
            raise UsageError(f"hydra.sweeper.total_epochs={total}: less than one trial of {trial}")
        return Plan(**{**options, "epochs": epochs, "total_epochs": None if total is None else total // seeds})

    def _job(self, point: Point, seed: str | None, *, epochs: int | None = None) -> expansion.Plan:
        """Return the overrides of a run, and its label. ``seed`` is an override; without ``epochs`` they are fixed."""
        values = [f"{key}={text}" for key, text in self._declared.space.values(point).items()]
        labelled = [*values, *([] if seed is None else [seed])]
        lines = [*self._declared.fixed, *labelled]
        if epochs is not None:
            lines = [line for line in lines if not line.startswith("trainer.epochs=")]
            lines += [*self._kept_while_epochs_grow(lines, epochs), f"trainer.epochs={epochs}"]
        return expansion.Plan(tuple(lines), directory_name(labelled))

    def _kept_while_epochs_grow(self, lines: Sequence[str], epochs: int) -> list[str]:
        """Return overrides with the values that refer to ``trainer.epochs``, such as the length of the schedule.

        They have their values for the largest number of epochs, so that a trial that is trained further is the same
        run.
        """
        if epochs == self._plan.epochs:
            return []
        load = self.context.config_loader.load_sweep_config
        try:
            fewer, all_epochs = (
                dict(leaves(require_resolvable(load(self.cfg, [*lines, f"trainer.epochs={number}"]))))
                for number in (epochs, self._plan.epochs)
            )
        except UsageError:  # the job reports it
            return []
        changed = {name: value for name, value in all_epochs.items() if fewer.get(name) != value}
        return [f"{name}={expansion.written(value)}" for name, value in changed.items() if name != "trainer.epochs"]

    def open(self, directory: Path) -> None:
        """Open the study in the directory, or begin one. Raise UsageError if it is that of another search."""
        fixed = self.planned(expansion.Plan(self._declared.fixed, "")).config
        config = identity(fixed) if fixed is not None else None
        may_grow = () if self._plan.method in STOPPING or self._plan.method == "grid" else ("trials", "total_epochs")
        declaration = {
            **{name: value for name, value in vars(self._plan).items() if name not in may_grow},
            "space": {parameter.name: str(parameter.domain) for parameter in self._declared.space.parameters},
            "seeds": list(self._declared.seeds),
            "config": without_epochs(config) if config is not None else None,
        }
        self._study = StudyFile(directory / NAME, name=str(self.cfg.name), declaration=declaration)
        self._directories = JobDirectories(directory, any_epochs=True)

    def run(self, directory: Path) -> bool:
        """Train what the method requests. Return whether the search ended and at least one run finished."""
        self._started = time.monotonic()
        log.info("search with method=%s, in %s", self._plan.method, directory)
        finished = False

        def conclude(reasons: Mapping[Path, str], seconds: float) -> str:
            return self._conclude(directory, reasons, seconds=seconds)

        with self.concluding(directory, self._jobs, conclude) as reasons, contextlib.suppress(_Unfinished):
            drive(self._searching, lambda requests: self._evaluate(requests, directory))
            self._end_study()
            finished = True
        succeeded = finished and len(reasons) < len(self._jobs)
        if self.confirm is None or not succeeded:
            return succeeded
        complete = [runs for runs in self._trials if runs.state(self._plan.epochs) == "complete"]
        best = [self._jobs[runs.paths[0]] for runs in sorted(complete, key=lambda runs: runs.value)[:1]]
        if not best:
            log.warning("hydra.sweeper.confirm=%d: nothing to confirm (no trial was trained to its end)", self.confirm)
            return succeeded
        seeds = [int(str(seed).partition("=")[2]) for seed in self._declared.seeds] or [self.cfg.seed]
        return self.train_confirmation(directory, best, among=self._jobs.values(), first_seed=1 + max(seeds))

    def _evaluate(self, requests: Sequence[Request], directory: Path) -> list[float]:
        """Train the trials that do not have their epochs yet. Return their validation metrics."""
        todo: dict[Path, PlannedJob] = {}
        for request in requests:
            jobs = [self._planned_job(request.trial, seed, request.epochs) for seed in self._seeds]
            paths = self._runs_of(request.trial, jobs).paths
            for path, seed, job in zip(paths, self._seeds, jobs, strict=True):
                self._jobs[path] = job
                if outcome(path, request.epochs, self._monitor) is None:
                    started_with = epochs_of_config(path)  # more epochs if its metrics were lost
                    more = started_with > request.epochs
                    todo[path] = self._planned_job(request.trial, seed, started_with) if more else job
        before = sum(map(trained_epochs, todo))
        with repeated(lambda: self._progress(todo, before), every_seconds=_SECONDS_BETWEEN_LINES):
            self.start([(job, path) for path, job in todo.items()], directory)
        self._trained += sum(map(trained_epochs, todo)) - before
        finished = [self._add(request) for request in requests]
        self._study.flush()
        log.info("%s", self._progress())
        failed = any(runs.state(self._plan.epochs) == "failed" for runs in self._trials if runs.rungs)
        if self.fail_fast and failed:
            self.ended = ""
        if not all(finished) or self.ended == "":
            raise _Unfinished
        self._require_different_mistakes()
        return [self._trials[request.trial.number].value for request in requests]

    def _planned_job(self, trial: Trial, seed: str | None, epochs: int) -> PlannedJob:
        return self.planned(self._job(trial.point, seed, epochs=epochs))

    def _runs_of(self, trial: Trial, jobs: Sequence[PlannedJob]) -> TrialRuns:
        """Return the runs of a trial. A new one gets directories, or those of an earlier trial with equal values."""
        if trial.number == len(self._trials):
            values = self._declared.space.values(trial.point)
            equal = (runs.paths for runs in self._trials if self._declared.space.values(runs.trial.point) == values)
            self._trials.append(TrialRuns(trial, next(equal, ()) or self._directories.of(jobs)))
        return self._trials[trial.number]

    def _add(self, request: Request) -> bool:
        """Add the results of a request to the trial, the history and the study. Return whether all runs have ended."""
        runs = self._trials[request.trial.number]
        outcomes = [outcome(path, request.epochs, self._monitor) for path in runs.paths]
        finished = [single for single in outcomes if single is not None]
        if len(finished) < len(outcomes):
            return False
        runs.rungs.append(request.epochs)
        runs.outcomes = finished
        for path, single in zip(runs.paths, finished, strict=True):
            self._epochs[path] = max(self._epochs.get(path, 0), len(single.curve))
        self._steps.append(Step(sum(self._epochs.values()), request.trial.number, request.epochs, runs.value))
        ended = runs.state(self._plan.epochs)
        self._update_study(runs, TrialState.RUNNING if ended == "stopped" else _STATES[ended])
        return True

    def _require_different_mistakes(self) -> None:
        """Raise _Unfinished if all trials so far have the same mistake in their config."""
        if any(math.isfinite(runs.value) for runs in self._trials):
            return
        reasons = {str(stored.read_summary(path).get("reason", "")) for runs in self._trials for path in runs.paths}
        kind, _, mistake = next(iter(reasons)).partition(": ")
        if len(reasons) == 1 and kind == UsageError.__name__:
            log.error("the search ends, because all trials have the same mistake: %s", mistake)
            raise _Unfinished

    def _update_study(self, runs: TrialRuns, state: TrialState) -> None:
        space, trial = self._declared.space, runs.trial
        self._study.update(trial.number, space, trial.point, runs.curve, state=state, value=runs.value)

    def _end_study(self) -> None:
        """Store the states of the trials that were not trained further."""
        for runs in self._trials:
            self._update_study(runs, _STATES[runs.state(self._plan.epochs)])
        self._study.flush()

    def _progress(self, running: Collection[Path] = (), before: int = 0) -> str:
        """Return how much of the budget is used, the best trial and the time left.

        Args:
            running: runs that are being trained.
            before: number of epochs that they had before.
        """
        budget = Budget(self._plan, self._declared.space)
        more = sum(map(trained_epochs, running)) - before
        epochs, most = sum(self._epochs.values()) + more, budget.epochs * len(self._seeds)
        best = min((runs for runs in self._trials if runs.rungs), key=lambda runs: runs.value, default=None)
        parts = [
            f"trials {len(self._trials)}{f' of {budget.trials:.0f}' if math.isfinite(budget.trials) else ''}",
            f"epochs {epochs}{f' of {most:.0f}' if math.isfinite(most) else ''}",
        ]
        if best is not None and math.isfinite(best.value):
            values = ", ".join(f"{key}={text}" for key, text in self._declared.space.values(best.trial.point).items())
            parts.append(f"lowest {self._monitor} {best.value:.4g} with {values}")
        if (trained := self._trained + more) and math.isfinite(most):
            seconds = (time.monotonic() - self._started) / trained * (most - epochs)
            parts.append(f"left {clock_time(max(0.0, seconds))}")
        return ", ".join(parts)

    def _conclude(self, directory: Path, reasons: Mapping[Path, str], *, seconds: float) -> str:
        """Write the tables, figures and summary of the search. Return the table that ends the log."""
        trials = [
            SearchedTrial(
                runs.trial.number,
                runs.trial.bracket,
                runs.trial.point,
                runs.paths,
                runs.rungs,
                runs.curve,
                runs.value,
                runs.state(self._plan.epochs),
            )
            for runs in self._trials
            if runs.rungs
        ]
        return conclude_search(
            directory,
            Searched(self._plan.method, self._monitor, self._declared.space, trials, self._steps),
            failures=reasons,
            overrides={path: job.plan.overrides for path, job in self._jobs.items()},
            about={"experiment": self.cfg.name, "seconds": seconds},
        )


_SECONDS_BETWEEN_LINES = 30.0
_NOT_SEARCHED = {
    "trainer.epochs": "which chooses the epochs; set hydra.sweeper.epochs",
    "trainer.monitor": "because all trials are compared by one metric",
    "seed": "because every trial is trained with the same seeds; list them outside of conditions",
}
_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
