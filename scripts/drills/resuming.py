"""Runs and sweeps that are killed: how they are started again, and whether they end like an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from cases import ROOT, Case
from command_line import Command, Outcome
from corpus import save_photos
from fingerprints import differences, fingerprint, same_up_to_rounding
from verdicts import last_lines, verdicts

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

Restart = Generator[Command, Outcome, bool]


@dataclass(frozen=True)
class Scenario:
    """What is started and killed.

    Args:
        weight: how often it is drawn.
        arguments: without those for the directory, which is ``killed``.
        pictures: the number of pictures of each class that it needs.
    """

    weight: int
    arguments: tuple[str, ...]
    pictures: int = 0

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep."""
        return "-m" in self.arguments

    def command_line(self) -> tuple[str, ...]:
        """Return the arguments that start it."""
        return (*self.arguments, f"hydra.{'sweep' if self.is_sweep else 'run'}.dir=killed")

    def command_lines_after_kill(self, directory: Path, draw: random.Random) -> list[tuple[str, ...]]:
        """Return the arguments that a person tries after a kill, in this order."""
        begun = (directory / ("multirun.yaml" if self.is_sweep else "config.yaml")).exists()
        lines = [("resume=killed",), self.command_line()]
        if not begun or (self.is_sweep and draw.random() < 0.5):
            lines.reverse()
        return lines

    def finished(self, directory: Path) -> bool:
        """Return whether nothing is left to do."""
        try:
            return bool(json.loads((directory / "summary.json").read_bytes()).get("status") == "finished")
        except (OSError, ValueError):
            return False

    def prepare(self, directory: Path) -> None:
        """Create what it needs besides its command."""
        if self.pictures:
            save_photos(directory / "photos", per_class=self.pictures, side=40)


@dataclass(frozen=True)
class Undisturbed:
    """A run that was not killed.

    Args:
        seconds: its duration.
        claimed: seconds until its directory existed.
        operations: the number of its operations on files.
        results: its fingerprint.
    """

    directory: Path
    seconds: float
    claimed: float
    operations: int
    results: dict[str, str]


def restart(case: Case, scenario: Scenario, command: Callable[[tuple[str, ...]], Command]) -> Restart:
    """Start a run or sweep again that was killed, with ``command``. Return whether it reached its end."""
    tried, directory = [], case.directory / "killed"
    for arguments in scenario.command_lines_after_kill(directory, case.draw):
        outcome = yield command(arguments)
        text = outcome.out + outcome.err
        (case.directory / "output-final").write_text(text)
        findings = list(verdicts(outcome, codes=(0, 1), sweep=scenario.is_sweep))
        for kind, detail in findings:
            case.find(kind, f"started again after a kill\n{detail}")
        if outcome.timed_out or any(kind.startswith("traceback") for kind, _ in findings):
            return False
        if outcome.code == 0:
            return True
        tried.append(f"{arguments[-1]}:\n{last_lines(text)}")
    files = sorted(path.name for path in directory.iterdir()) if directory.exists() else "no directory"
    case.find("stuck", f"it can neither be resumed nor started again ({files})\n" + "\n".join(tried))
    return False


def check_results(case: Case, undisturbed: Undisturbed, *, vectorized: bool = False) -> None:
    """Compare the results with those of the undisturbed run, and look for partial files."""
    directory = case.directory / "killed"
    ours = fingerprint(directory)
    different = [
        name
        for name in differences(ours, undisturbed.results)
        if name != "tables/settings.csv"  # it has seconds
    ]
    if vectorized and different:
        texts = [path.read_text(errors="replace") for path in case.directory.glob("output-*[0-9l]")]
        smaller = any(re.search(r"training [1-3] jobs? at once|^job \d+ of", text, re.MULTILINE) for text in texts)
        tables = [root / "sweep.csv" for root in (directory, undisturbed.directory)]
        if smaller and same_up_to_rounding(*tables):
            case.counted.append("equal up to rounding")
            different = []
    if different:
        case.find("wrong result", f"other than in the undisturbed run: {', '.join(different)}")
    if partial := [path.name for path in case.directory.rglob("*.partial")]:
        case.find("leftover file", ", ".join(partial))


def python_path(cold: bool) -> dict[str, str]:
    """Return the environment in which a new Python process finds the code beside this file."""
    if not cold:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))}
