"""The default sweeper: train every combination of the values once, even over several calls.

It validates all jobs before the first starts, names their directories by the keys that vary, skips the jobs that an
earlier call in the same directory has finished, gives the others to any launcher, and compares all runs at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlhw.cli import composition
from dlhw.errors import UsageError
from dlhw.runs.record import Record
from dlhw.sweeps.expansion import UnreadParams, expand, overrides_of
from dlhw.sweeps.job_sweeper import JobSweeper
from dlhw.sweeps.jobs import JobDirectories, PlannedJob

log = logging.getLogger("dlhw")


class Grid(JobSweeper):
    """All combinations of the values in ``params`` and on the command line, which replaces keys of ``params``.

    Values are written as for Hydra's own sweeper: ``1,2``, ``choice(1,2)``, ``range(...)``, ``glob(...)``. With
    ``fail_fast`` the sweep stops after the first job that fails. ``space`` is for ``hydra/sweeper=search``.
    """

    def __init__(self, params: Any = None, *, space: Any = None, fail_fast: bool = False) -> None:
        super().__init__(params=params, space=space, fail_fast=fail_fast)

    def prepare(self, arguments: list[str]) -> None:
        """Expand the grid and validate all of its jobs. Raise UsageError."""
        unread: dict[str, None] = {}
        plans = expand(
            overrides_of(self.params),
            arguments,
            loader=self.context.config_loader,
            unread_params=self._unread_params(unread),
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
        """Run the jobs that are not finished. Return whether all jobs have finished."""
        paths = self._paths
        finished = {path for path in paths if Record(path).finished}
        note = f", {len(finished)} of them already finished" if finished else ""
        log.info("%d job%s%s, in %s", len(paths), "" if len(paths) == 1 else "s", note, directory)
        jobs = dict(zip(paths, self._jobs, strict=True))
        with self.concluding(directory, jobs) as reasons:
            self.start([(job, path) for path, job in jobs.items() if path not in finished], directory)
        return not reasons

    def conclude(
        self, directory: Path, jobs: Mapping[Path, PlannedJob], reasons: Mapping[Path, str], *, seconds: float
    ) -> str:
        """Compare the jobs and the runs of earlier calls. Return the table that ends the log."""
        from dlhw.cli.build import build
        from dlhw.views.comparison import compare_runs, run_directories

        try:
            earlier_runs = [path for path in run_directories(directory) if path not in jobs]
        except UsageError:  # no job has begun
            earlier_runs = []
        conclusion = compare_runs(
            directory,
            [*jobs, *earlier_runs],
            comparison=build(self.cfg, "comparison"),
            failures=reasons,
            about={"experiment": self.cfg.name, "seconds": seconds},
            overrides={path: job.plan.overrides for path, job in jobs.items()},
        )
        return str(conclusion)
