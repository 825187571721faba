"""The jobs of a sweep: the directory of each, and why it failed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dlhw.errors import UsageError
from dlhw.runtime.paths import printable
from dlhw.storage.identity import identity, identity_of_run, without_epochs
from dlhw.storage.record import Record
from dlhw.storage.stored import Unreadable, read_summary, read_sweep
from dlhw.sweeps.expansion import Plan


@dataclass(frozen=True)
class PlannedJob:
    """A plan with its config, or with the error that composing raised."""

    plan: Plan
    config: DictConfig | None
    error: UsageError | None = None


class JobDirectories:
    """The directories of a sweep's jobs: one where an earlier call began this run, or a new one named by its label.

    Jobs with equal configs keep the directories that are named by their labels. Names that differ only in upper and
    lower case are the same directory on Windows and macOS, so a new directory gets a number.

    Args:
        directory: of the sweep.
        any_epochs: a run with the config of a job is its run even if it has another number of epochs.
    """

    def __init__(self, directory: Path, *, any_epochs: bool = False) -> None:
        self._directory = directory
        self._any_epochs = any_epochs
        stored = {path.parent: identity_of_run(path.parent) for path in sorted(directory.glob("*/config.yaml"))}
        self._runs = {path: self._compared(content) for path, content in stored.items()}
        self._names = {_key(path) for path in self._runs}
        self._taken: dict[Path, PlannedJob] = {}

    def _compared(self, content: dict[str, Any] | None) -> dict[str, Any] | None:
        return without_epochs(content) if content is not None and self._any_epochs else content

    def of(self, jobs: Sequence[PlannedJob]) -> list[Path]:
        """Return the directory of each of these jobs, which have none yet."""
        begun: list[list[Path]] = []
        for job in jobs:
            known = self._compared(identity(job.config)) if self._runs and job.config is not None else None
            begun.append([path for path, stored in self._runs.items() if known is not None and stored == known])
            labelled = self._directory / job.plan.label
            if labelled in begun[-1]:
                self._taken.setdefault(labelled, job)
        return [self._choose(job, earlier) for job, earlier in zip(jobs, begun, strict=True)]

    def _choose(self, job: PlannedJob, begun: Sequence[Path]) -> Path:
        path = self._directory / job.plan.label
        if self._taken.get(path) is not job:
            numbered = (path.with_name(f"{path.name}-{attempt}") for attempt in itertools.count(2))
            new = (candidate for candidate in itertools.chain([path], numbered) if _key(candidate) not in self._names)
            path = next(candidate for candidate in itertools.chain(begun, new) if candidate not in self._taken)
            self._taken[path] = job
            self._names.add(_key(path))
        return path


def _key(path: Path) -> str:
    return path.name.casefold()


def obstacle(path: Path) -> str | None:
    """Return what is at the path of a job's directory if it is not a directory; None if it is one or is free."""
    if path.is_dir() or not os.path.lexists(path):
        return None
    what = "a broken link" if path.is_symlink() else "a file"
    return f"{printable(path)}: {what}; expected the directory of a job; restore or remove it, then resume the sweep"


def mark_unfinished(directory: Path, jobs: Collection[str]) -> None:
    """Drop the failures of these jobs from the table of an earlier call, because they are tried again."""
    try:
        rows = read_sweep(directory) or []
    except Unreadable:  # it is written again at the end
        return
    failed = [row for row in rows if row["job"] in jobs and row["status"] == "failed"]
    for row in failed:
        row |= {"status": "unfinished", "reason": ""}
    if failed:
        Record(directory).csv("sweep", rows)


def failure_reason(path: Path, ended: str | None) -> str | None:
    """Return why the job in this directory failed or did not run; None if it is finished.

    ``ended`` is why the launcher ended early, if it did.
    """
    if reason := obstacle(path):
        return reason
    try:
        summary = read_summary(path)
    except UsageError as error:
        return str(error)
    if summary.get("status") == "failed":
        return str(summary.get("reason"))
    if summary.get("status") == "finished":
        return None
    return "it ended without a summary; see its run.log" if ended is None else ended
