"""Damage files that dlhw reads, and check what it does with them.

    python scripts/drills/files.py --count 2000 --seed 0
    python scripts/drills/files.py --seed 0 --only 137 --verbose   repeat one case

Every case copies a small corpus: a finished run, an interrupted one, sweeps likewise, a folder of pictures with its
cache, an experiment file, and MNIST if it is in the folder ``DLHW_DATA``. It changes one file (``mutations.py``) and
runs what reads it: ``resume=``, the same command again, ``python -m dlhw.compare``, ``python -m dlhw.predict``,
``dlhw.load_run`` and ``dlhw.load_sweep``, training on the pictures.

Further findings, besides those of ``verdicts.py``: code of a malicious file is executed; a command succeeds but its
result differs from that of the undisturbed run; a command fails and loses results; a message names neither the file nor
its directory.

A changed number in a CSV, JSON or YAML file that is as valid as before is not a wrong result, because no program could
notice it. A resumed run is compared bit by bit nevertheless: its checkpoint has the rows and identifies the config.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Case, Steps, drill, options_parser
from changes import Change, change_file
from children import run
from command_line import Command, Outcome
from corpus import IDX_FILES, MNIST, OWN, PICTURES, RUN, SWEEP, Corpus
from fingerprints import differences, fingerprint
from reading import (
    epochs,
    first_difference,
    mapping_in,
    not_a_mapping,
    read_run,
    read_sweep,
    with_argument,
    wrong_in_table,
)
from verdicts import last_lines, patience, traceback_in, verdicts

MEMORY_BYTES = 6 << 30
"""Address space that a command may use in addition to what it has at its start."""
FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Scenario:
    """A part of the corpus, and what reads it.

    Args:
        weight: how often it is drawn.
        parts: directories of the corpus that each case copies.
        victims: glob patterns of the files that may be changed.
        steps: runs the commands, given the change.
    """

    weight: int
    parts: tuple[str, ...]
    victims: tuple[str, ...]
    steps: Callable[[Drill, Case, Change], Steps]


class Drill:
    """The cases of one drill."""

    def __init__(self, corpus: Corpus, *, names: Sequence[str], seconds: float) -> None:
        self.corpus = corpus
        self.seconds = seconds
        self.names = [name for name in names if name != "idx" or corpus.has_idx]

    def steps(self, case: Case) -> Steps:
        """Copy the corpus, change a file, and run what reads it."""
        name = case.draw.choices(self.names, [SCENARIOS[name].weight for name in self.names])[0]
        scenario = SCENARIOS[name]
        for part in scenario.parts:
            shutil.copytree(self.corpus[part], case.directory / part, symlinks=True)
        case.counted.append(f"in {name}")
        if name == "pictures":
            shutil.copy2(self.corpus.root / "groups.csv", case.directory)
            yield self.command(case, *PICTURES, "hydra.run.dir=before")
        victims = sorted(
            {path for pattern in scenario.victims for path in case.directory.glob(pattern) if path.is_file()}
        )
        change = change_file(case, case.draw.choice(victims), self.corpus)
        case.title = f"{name}: {change.path.relative_to(case.directory)}: {change.what}"
        yield from scenario.steps(self, case, change)
        if change.marker.exists():
            case.find("code executed", str(change.path))

    def command(self, case: Case, *arguments: str, module: str = "dlhw.train", **options: Any) -> Command:
        """Return a command in the case's directory with limited memory."""
        return Command(
            arguments, at=case.directory, module=module, prepare=limit_memory, seconds=patience(self.seconds), **options
        )

    def check(self, case: Case, outcome: Outcome, change: Change, *, names: Sequence[str] = ()) -> bool:
        """Add the findings that are possible for every command. Return whether it succeeded."""
        text = outcome.out + outcome.err
        sweep = "sweep" in str(change.path.relative_to(case.directory))
        for kind, detail in verdicts(outcome, codes=(0, 1), sweep=sweep):
            case.find(kind, detail)
        if outcome.timed_out:
            return False
        known = [*change.path.relative_to(case.directory).parts, *names]
        if outcome.code == 1 and not traceback_in(text) and text.strip() and not any(name in text for name in known):
            case.find("message without the file", f"names none of {', '.join(known)}\n{last_lines(text)}")
        if outcome.code and (lost := change.lost()):
            names_lost = ", ".join(str(path.relative_to(case.directory)) for path in lost)
            case.find("lost file", f"after a failed command: {names_lost}")
        if re.search(r"^\S+\.py:\d+: \w*Warning", text, re.MULTILINE):
            case.find("raw warning", last_lines(text))
        return outcome.code == 0

    def resume(self, case: Case, change: Change) -> Steps:
        """Resume the interrupted run."""
        outcome = yield self.command(case, "resume=cut")
        if self.check(case, outcome, change):
            self.check_run(case, change, case.directory / "cut", "run")

    def prolong(self, case: Case, change: Change) -> Steps:
        """Continue the finished run for more epochs."""
        outcome = yield self.command(case, "resume=run", "trainer.epochs=8")
        if self.check(case, outcome, change):
            self.check_run(case, change, case.directory / "run", "long")

    def check_run(self, case: Case, change: Change, directory: Path, expected: str) -> None:
        """A run that was resumed has the results of the undisturbed one."""
        names = ("metrics.csv", "best.pt", "last.pt")
        ours = {name: value for name, value in fingerprint(directory).items() if name in names}
        theirs = {name: value for name, value in self.corpus.expected(expected).items() if name in names}
        if change.plain and change.path.name == "config.yaml" and epochs(directory) != epochs(self.corpus[expected]):
            return
        if different := differences(ours, theirs):
            case.find("wrong result", f"exit code 0, but {', '.join(different)} differ from the undisturbed run")

    def again(self, case: Case, change: Change) -> Steps:
        """Start the command of an existing run again, which must be refused and change nothing."""
        name = change.path.relative_to(case.directory).parts[0]
        outcome = yield self.command(case, *RUN, f"hydra.run.dir={name}")
        if self.check(case, outcome, change):
            case.find("wrong result", "a run was started in the directory of another one")

    def resume_sweep(self, case: Case, change: Change) -> Steps:
        """Resume the interrupted sweep, or start its command again."""
        lines = case.draw.choice([("resume=cutsweep",), (*SWEEP, "hydra.sweep.dir=cutsweep")])
        outcome = yield self.command(case, *lines)
        if not self.check(case, outcome, change):
            return
        directory = case.directory / "cutsweep"
        ours, theirs = fingerprint(directory), self.corpus.expected("sweep")
        if not change.plain:
            self.check_table(case, directory / "sweep.csv", self.corpus["sweep"] / "sweep.csv")
        for name in differences(ours, theirs):
            path = Path(name)
            read = path.suffix in (".csv", ".pt") and len(path.parts) == 2 and path.parts[0] != "tables"
            if read and name in theirs and not self.may_differ(directory, path, change):
                case.find("wrong result", f"exit code 0, but {name} differs from the undisturbed sweep")
                break

    def may_differ(self, directory: Path, path: Path, change: Change) -> bool:
        """Return whether a file of a job may differ from that in the undisturbed sweep.

        It may if it is the changed file of a job that had finished before, or a file of a job that has another config.
        """
        if directory / path == change.path and change.job_finished:
            return True
        config, expected = (root / path.parent / "config.yaml" for root in (directory, self.corpus["sweep"]))
        return not config.is_file() or config.read_bytes() != expected.read_bytes()

    def finished_sweep(self, case: Case, change: Change) -> Steps:
        """Compare the finished sweep, or read it in Python."""
        if case.draw.random() < 0.3:
            yield from self.read(case, change, "sweep", read_sweep)
            return
        command = case.draw.choice(["compare", "compare", "resume", "again"])
        if command == "compare":
            outcome = yield self.command(case, "sweep", module="dlhw.compare")
        else:
            lines = ("resume=sweep",) if command == "resume" else (*SWEEP, "hydra.sweep.dir=sweep")
            outcome = yield self.command(case, *lines)
        if self.check(case, outcome, change) and not change.plain:
            self.check_table(case, case.directory / "sweep" / "sweep.csv", self.corpus["sweep"] / "sweep.csv")

    @staticmethod
    def check_table(case: Case, path: Path, expected: Path) -> None:
        """The numbers of a table of runs are those of the undisturbed sweep, or missing."""
        for text in wrong_in_table(path, expected):
            case.find("wrong result", text)

    def read_run(self, case: Case, change: Change) -> Steps:
        """Read the finished run in Python, or compare it with another."""
        if case.draw.random() < 0.6:
            yield from self.read(case, change, "run", read_run)
            return
        outcome = yield self.command(case, "run", "other", "-o", "out", module="dlhw.compare")
        if self.check(case, outcome, change) and not change.plain:
            expected = self.compared()
            self.check_table(case, case.directory / "out" / "sweep.csv", expected)

    @functools.cache  # noqa: B019
    def compared(self) -> Path:
        """Return the table of the comparison of the undisturbed runs."""
        for name in ("run", "other"):
            self.corpus[name]
        command = Command(("run", "other", "-o", "out"), at=self.corpus.root, module="dlhw.compare", seconds=300)
        outcome = run(command)
        assert outcome.code == 0, outcome.err
        return self.corpus.root / "out" / "sweep.csv"

    def read(self, case: Case, change: Change, name: str, function: Callable[[str], object]) -> Steps:
        """Read a directory in Python. Each part is that of the undisturbed one, or a UsageError."""
        outcome = yield self.command(case, function=with_argument(function, name))
        if not self.check(case, outcome, change):
            return
        parts = json.loads(outcome.out.splitlines()[-1])
        expected = self.expected_parts(name, function)
        for part, result in parts.items():
            message = result.get("error")
            if message is not None:
                if not any(text in message for text in (change.path.name, change.path.parent.name, name)):
                    case.find("message without the file", f"{part}: names no file: {message[:300]}")
            elif result != expected[part] and not self.says_so(change, part, result["value"]):
                case.find("wrong result", f"{part}: {first_difference(result, expected[part])}")

    @staticmethod
    def says_so(change: Change, part: str, value: object) -> bool:
        """Return whether a part that differs is what the changed file says, so that no program could notice it."""
        if part.startswith("model"):
            return False
        if part == "summary" and not change.path.exists():
            return value == {}  # as of a run that has not ended
        if part in ("config", "summary") and isinstance(value, dict) and change.path.stem == part:
            return mapping_in(change.path) == value
        return change.plain

    @functools.cache  # noqa: B019
    def expected_parts(self, name: str, function: Callable[[str], object]) -> dict[str, Any]:
        """Return what the undisturbed directory holds."""
        self.corpus[name]
        outcome = run(Command((), at=self.corpus.root, function=with_argument(function, name), seconds=300))
        assert outcome.code == 0, outcome.err
        parts: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])
        return parts

    def pictures(self, case: Case, change: Change) -> Steps:
        """Train on the folder again, with its cache and without."""
        outcome = yield self.command(case, *PICTURES, "hydra.run.dir=with")
        with_cache = self.check(case, outcome, change, names=["photos", "groups", "cache"])
        outcome = yield self.command(case, *PICTURES, "dataset.cache_dir=new", "hydra.run.dir=without")
        without = self.check(case, outcome, change, names=["photos", "groups", "cache"])
        if with_cache and without:
            names = differences(*(fingerprint(case.directory / name) for name in ("with", "without")))
            if any(Path(name).suffix != ".json" for name in names):
                case.find("wrong result", f"{', '.join(names)} differ with the cache and without it")
        elif with_cache and not any(kind == "hang" for kind, _ in case.findings):
            case.find("wrong result", "trains with the cache, but not without it")
        elif without and change.path.suffix in (".pictures", ".json"):
            case.find("stuck", f"a damaged cache is not made again\n{last_lines(outcome.err)}")

    def predict(self, case: Case, change: Change) -> Steps:
        """Classify pictures with the run."""
        lines = ("pictures", "photos/cat", "--json")
        outcome = yield self.command(case, *lines, module="dlhw.predict")
        if self.check(case, outcome, change) and not change.plain and change.path.parts[-3] != "photos":
            self.corpus["photos"]
            expected = self.predicted()
            missing_names = change.path.name == "summary.json" and "no class names in summary.json" in outcome.err
            if outcome.out != expected and not missing_names:
                case.find("wrong result", "other predictions than those of the undisturbed run")

    @functools.cache  # noqa: B019
    def predicted(self) -> str:
        """Return the predictions of the undisturbed run."""
        self.corpus["pictures"]
        lines = ("pictures", "photos/cat", "--json")
        return run(Command(lines, at=self.corpus.root, module="dlhw.predict", seconds=300)).out

    def own(self, case: Case, change: Change) -> Steps:
        """Run a person's own experiment, or print its config."""
        more = case.draw.choice([("--cfg", "job"), ("hydra.run.dir=result", "trainer.epochs=1")])
        outcome = yield self.command(case, *OWN, *more)
        if self.check(case, outcome, change, names=["own", "=", "mine"]) and change.path.name == "own.yaml":
            problem = not_a_mapping(change.path)
            if problem:
                case.find("wrong result", f"exit code 0, but own.yaml {problem}")

    def idx(self, case: Case, change: Change) -> Steps:
        """Train on MNIST."""
        (case.directory / "idx").rename(case.directory / "data")
        outcome = yield self.command(case, *MNIST, "hydra.run.dir=result")
        if self.check(case, outcome, change, names=["MNIST", "mnist"]):
            case.find("wrong result", "a changed file of MNIST was accepted")


def limit_memory() -> None:
    """Limit the memory of this process and the size of its files."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


SCENARIOS = {
    "resume": Scenario(6, ("cut",), ("cut/*", "cut/probes/*", "cut/.hydra/*"), Drill.resume),
    "prolong": Scenario(3, ("run",), ("run/*", "run/.hydra/*"), Drill.prolong),
    "again": Scenario(1, ("cut",), ("cut/*", "cut/.hydra/*"), Drill.again),
    "resumed sweep": Scenario(4, ("cutsweep",), ("cutsweep/*", "cutsweep/*/*"), Drill.resume_sweep),
    "sweep": Scenario(3, ("sweep",), ("sweep/*", "sweep/*/*", "sweep/tables/*"), Drill.finished_sweep),
    "read": Scenario(5, ("run", "other"), ("run/*", "run/probes/*", "run/.hydra/*"), Drill.read_run),
    "pictures": Scenario(3, ("photos",), ("photos/*/*", "cache/*", "cache/*", "groups.csv"), Drill.pictures),
    "predict": Scenario(2, ("pictures", "photos"), ("pictures/*", "photos/cat/*"), Drill.predict),
    "own": Scenario(2, ("mine",), ("mine/experiment/*",), Drill.own),
    "idx": Scenario(1, ("idx",), tuple(f"idx/MNIST/raw/{name}" for name in IDX_FILES[1:]), Drill.idx),
}


def main() -> None:
    parser = options_parser(__doc__, count=2000, seconds=30)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="default: all")
    options = parser.parse_args()
    data = Path(os.environ["DLHW_DATA"]) if os.environ.get("DLHW_DATA") else None

    def steps_in(directory: Path) -> Callable[[Case], Steps]:
        return Drill(Corpus(directory / "corpus", data), names=options.scenarios, seconds=options.seconds).steps

    sys.exit(drill(parser, options, steps_in))


if __name__ == "__main__":
    main()
