"""The default sweeper: train every combination of the values once, even over several calls.

It validates all jobs before the first starts, names their directories by the keys that vary, skips the jobs that an
earlier call in the same directory has finished, gives the others to any launcher, and compares all runs at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.cli import composition
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of
from dlhw.storage.record import Record
from dlhw.sweeps.expansion import UnreadParams, expand, overrides_of, parse
from dlhw.sweeps.job_sweeper import JobSweeper
from dlhw.sweeps.jobs import JobDirectories

if TYPE_CHECKING:
    from dlhw.views.comparison import Conclusion

log = logging.getLogger("dlhw")


class Grid(JobSweeper):
    """All combinations of the values in ``params`` and on the command line, which replaces keys of ``params``.

    Values are written as for Hydra's own sweeper: ``1,2``, ``choice(1,2)``, ``range(...)``, ``glob(...)``. With
    ``fail_fast`` the sweep stops after the first job that fails. ``space`` is for ``hydra/sweeper=search``. Keys in
    ``one_at_a_time`` are not combined with each other, see :func:`dlhw.sweeps.expansion.expand`. With ``confirm`` and
    ``comparison.overlay``, the best setting of each of its values is trained with other seeds.
    """

    def __init__(
        self,
        params: Any = None,
        *,
        space: Any = None,
        fail_fast: bool = False,
        one_at_a_time: Sequence[str] = (),
        confirm: int | None = None,
    ) -> None:
        super().__init__(params=params, space=space, fail_fast=fail_fast, confirm=confirm)
        keys = (
            list(one_at_a_time) if not isinstance(one_at_a_time, str) and isinstance(one_at_a_time, Sequence) else None
        )
        if keys is None or not all(isinstance(key, str) for key in keys):
            raise UsageError(f"hydra.sweeper.one_at_a_time={one_at_a_time}: must be a list of keys")
        self.one_at_a_time: list[str] = keys

    def prepare(self, arguments: list[str]) -> None:
        """Expand the grid and validate all of its jobs. Raise UsageError."""
        loader = self.context.config_loader
        varied = [*self.params, *(override.get_key_element().lstrip("+") for override in parse(arguments, loader))]
        for name in self.one_at_a_time:
            if name not in varied:
                expected = expected_one_of(name, varied) if varied else ""
                raise UsageError(f"hydra.sweeper.one_at_a_time: {name}: does not vary in this sweep{expected}")
        unread: dict[str, None] = {}
        plans = expand(
            overrides_of(self.params),
            arguments,
            loader=self.context.config_loader,
            unread_params=self._unread_params(unread),
            one_at_a_time=self.one_at_a_time,
        )
        self._jobs = self.compose(plans)
        self.launcher_for(len(self._jobs))
        for name in unread:
            log.info("%s varies only in jobs that read it", name)

    def _unread_params(self, collected: dict[str, None]) -> UnreadParams:
        """Return the function with which :func:`expand` finds ``params`` that a job does not read. It collects them."""
        loader = self.context.config_loader
        assert isinstance(loader, composition.Loader)
        by_structure: dict[tuple[str, ...], frozenset[str]] = {}

        def unread_params(lines: Sequence[str]) -> frozenset[str]:
            overrides = [composition.parsed(line) for line in lines]
            structure = loader.structure(overrides)
            if structure not in by_structure:
                by_structure[structure] = loader.unread_params(self.cfg, list(self.params), overrides)
                collected.update(dict.fromkeys(sorted(by_structure[structure])))
            return by_structure[structure]

        return unread_params

    def open(self, directory: Path) -> None:
        """Find the directories of the jobs, new ones or those of an earlier call."""
        self._paths = JobDirectories(directory).of(self._jobs)

    def run(self, directory: Path) -> bool:
        """Run the jobs that are not finished, then those that confirm the result. Return whether all have finished."""
        paths = self._paths
        finished = {path for path in paths if Record(path).finished}
        note = f", {len(finished)} of them already finished" if finished else ""
        log.info("%d job%s%s, in %s", len(paths), "" if len(paths) == 1 else "s", note, directory)
        jobs = dict(zip(paths, self._jobs, strict=True))
        conclusions: list[Conclusion] = []

        def conclude(reasons: Mapping[Path, str], seconds: float) -> str:
            earlier_runs = [path for path in _run_directories(directory) if path not in jobs]
            conclusions.append(self.compare(directory, jobs, reasons, seconds=seconds, earlier_runs=earlier_runs))
            return str(conclusions[0])

        with self.concluding(directory, jobs, conclude) as reasons:
            self.start([(job, path) for path, job in jobs.items() if path not in finished], directory)
        if self.confirm is None or self.ended is not None:
            return not reasons
        conclusion = conclusions[0]
        seeds = [run.seed for setting in conclusion.settings for run in setting.runs if run.seed is not None]
        first_runs = [
            next((run.path for run in setting.runs if run.path in jobs), None)  # None: all are of earlier calls
            for setting in conclusion.best(self.cfg.comparison.overlay)
        ]
        best = [jobs[path] for path in first_runs if path is not None]
        if not best:
            reason = "the best setting is one of an earlier call" if first_runs else conclusion.no_winner
            log.warning("hydra.sweeper.confirm=%d: nothing to confirm (%s)", self.confirm, reason)
            return not reasons
        confirmed = self.train_confirmation(directory, best, among=jobs.values(), first_seed=1 + max(seeds, default=0))
        return confirmed and not reasons


def _run_directories(directory: Path) -> list[Path]:
    """Return the runs in the directory of a sweep; none if no job has begun."""
    from dlhw.views.comparison import run_directories

    try:
        return run_directories(directory)
    except UsageError:
        return []
