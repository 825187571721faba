"""Kill runs and sweeps at random moments, start them again until they end, and compare with an undisturbed one.

    python scripts/drills/kills.py --count 500 --seed 0
    python scripts/drills/kills.py --seed 0 --only 137          repeat one case

A case starts a run, a run on a folder of pictures, a study, or a sweep with the basic or the vectorized launcher, and
sends SIGKILL, SIGTERM or SIGINT, to the process or its group, sometimes twice within 50 ms. The moment is random:
uniform over the time until the directory exists, uniform over the whole run, or at one of the operations on files,
which a hook in the child counts (such a case is repeated exactly). Then it is resumed, or its command is started again,
and sometimes killed again, until it ends. ``--cold`` is the share of cases that start a new Python process, where the
signal may come during the imports; all others are forked from a process that has imported everything.

A finding is: a signal without effect, or an exit code other than 130, 143 and that of the signal itself; a traceback or
more than three lines after the signal; a process that does not end within ``--limit`` seconds, which are longer on a
busy machine; a directory that can neither be resumed nor started again; a metric, tensor or table that differs in one
bit; files named ``*.partial`` and processes that are left.
Jobs of a vectorized sweep that are trained in smaller groups after the kill may differ by rounding.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import (
    ROOT,
    Case,
    Steps,
    append_only,
    differences,
    drill,
    fingerprint,
    has_traceback,
    last_lines,
    parser,
    patience,
    repeat_line,
    working_directory,
)
from children import Command, Interruption, Outcome
from corpus import PICTURES, RUN, SMALL, SWEEP, save_photos

MARK = "\x1e"
"""Starts the line that is written to the output of a command when it receives a signal."""
MOST_LINES = 3
"""Lines that a run may print after a signal."""
MOST_LINES_OF_SWEEP = 8
"""Likewise for a sweep, which prints the table of its settings."""
LATE_SECONDS = 0.5
"""A command that ends this soon after a signal may have ended without it."""
SECOND_AFTER = 0.05
"""Seconds between two signals in a row."""
SLOW_SECONDS = 10.0
"""A command must end this soon after a signal."""
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.utime", "os.listdir")
"""Audit events that count as operations on files."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PROJECTION = ("study=projection",)

Restart = Generator[Command, Outcome, bool]
Measuring = Generator[Command, Outcome, "Undisturbed"]


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


SCENARIOS = {
    "run": Scenario(4, RUN),
    "run without checkpoints": Scenario(2, (*RUN, "trainer.checkpoint_seconds=1000", "model.batch_norm=true")),
    "pictures": Scenario(3, (*(line for line in PICTURES if "groups" not in line), "trainer.epochs=3"), pictures=60),
    "study": Scenario(1, PROJECTION),
    "sweep": Scenario(3, ("-m", *SMALL, "trainer.epochs=3", "seed=0,1,2", "comparison.curves=[]")),
    "vectorized": Scenario(2, (*SWEEP, "hydra/launcher=vectorized", "comparison.curves=[]")),
}


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


@dataclass(frozen=True)
class Kill:
    """A signal, when it is sent, and to whom."""

    numbers: tuple[int, ...]
    whole_group: bool
    after: float | None = None
    operation: int | None = None

    def __str__(self) -> str:
        names = " and ".join(signal.Signals(number).name for number in self.numbers)
        moment = f"after {self.after:.3f} s" if self.operation is None else f"at file operation {self.operation}"
        return f"{names}{' to the group' if self.whole_group else ''} {moment}"


class Drill:
    """The cases of one drill."""

    def __init__(self, root: Path, *, names: list[str], cold: float, seconds: float, most_kills: int = 3) -> None:
        self.root = root
        self.names = names
        self.cold = cold
        self.seconds = seconds
        self.most_kills = most_kills
        self.known: dict[Path, Undisturbed] = {}

    def steps(self, case: Case) -> Steps:
        """Start, kill and start again, then compare."""
        draw = case.draw
        name = draw.choices(self.names, [SCENARIOS[name].weight for name in self.names])[0]
        scenario, cold = SCENARIOS[name], draw.random() < self.cold
        undisturbed = yield from self.undisturbed(case, name, cold)
        prepare_directory(case.directory, scenario)
        directory, most_lines = case.directory / "killed", MOST_LINES_OF_SWEEP if scenario.is_sweep else MOST_LINES
        case.title, arguments = f"{name}{', a new process' if cold else ''}", scenario.command_line()
        case.counted.append(f"of {case.title}")
        for attempt in range(min(draw.choice([1, 1, 2, 3]), self.most_kills)):
            kill = self.kill(draw, undisturbed, cold=cold)
            case.title += f"; {kill}"
            output = case.directory / f"output-{attempt}"
            command, close = killed_command(case, arguments, kill, output, cold=cold, seconds=patience(self.seconds))
            outcome = yield command
            close()
            text = output.read_text(errors="replace")
            if not self.check_killed(
                case, outcome, kill, text, late=scenario.finished(directory), most_lines=most_lines
            ):
                return
            if scenario.finished(directory):
                break
            arguments = scenario.command_lines_after_kill(directory, draw)[0]
        if not scenario.finished(directory):
            command_of = functools.partial(
                Command, at=case.directory, cold=cold, env=python_path(cold), seconds=patience(self.seconds)
            )
            ended = yield from restart(case, scenario, command_of)
            if not ended:
                return
        check_results(case, undisturbed, vectorized=name == "vectorized")

    def kill(self, draw: random.Random, undisturbed: Undisturbed, *, cold: bool) -> Kill:
        """Draw a kill."""
        number = draw.choice(SIGNALS)
        numbers = (number, draw.choice(SIGNALS)) if draw.random() < 0.15 else (number,)
        whole_group = draw.random() < 0.3
        if cold:
            return Kill(numbers, whole_group, after=draw.uniform(0, undisturbed.seconds))
        kind = draw.choice(["composing"] * 3 + ["any"] * 3 + ["operation"] * 4)
        if kind == "operation":
            return Kill(numbers[:1], False, operation=draw.randint(1, undisturbed.operations))
        end = undisturbed.claimed if kind == "composing" else undisturbed.seconds
        return Kill(numbers, whole_group, after=draw.uniform(0, end))

    def check_killed(self, case: Case, outcome: Outcome, kill: Kill, text: str, *, late: bool, most_lines: int) -> bool:
        """Check how a command ended after its signal. Return whether it may be started again."""
        _, mark, after = text.partition(MARK)
        if not mark:
            case.counted.append("signals: the command had ended before")
            if outcome.timed_out:
                case.find("hang", f"no end within {outcome.seconds:.0f} s\n{last_lines(text)}")
                return False
            if outcome.code:
                case.find("stuck", f"exit code {outcome.code} before the signal\n{last_lines(text)}")
            return outcome.code == 0
        marked, _, after = after.partition("\n")
        sent, phase = marked.split(" ", 1)
        after = re.sub(rf"{MARK}.*\n", "", after)
        delay = time.monotonic() - float(sent)
        case.title += f" ({phase})"
        case.counted.append(f"signals: {phase}")
        where = f"{kill}, while {phase}"
        if outcome.timed_out or delay > patience(SLOW_SECONDS):
            case.find("hang", f"{where}: no end within {delay:.0f} s\n{last_lines(text)}")
            return not outcome.timed_out
        if outcome.orphans:
            case.find("leftover process", f"{where}: processes were left")
        if has_traceback(after):
            self.check_traceback(case, outcome, where, after)
            return True
        if signal.SIGKILL in kill.numbers and outcome.code == -signal.SIGKILL:
            return True
        expected = {128 + number for number in kill.numbers} | {-number for number in kill.numbers}
        if outcome.code == 0:
            if not late or delay > patience(LATE_SECONDS):
                case.find("lost interrupt", f"{where}: ended {delay:.2f} s later with exit code 0\n{last_lines(after)}")
        elif outcome.code not in expected:
            case.find("lost interrupt", f"{where}: exit code {outcome.code}, {delay:.2f} s later\n{last_lines(after)}")
        elif len(after.splitlines()) > most_lines:
            case.find("message", f"{where}: {len(after.splitlines())} lines\n{last_lines(after)}")
        return True

    @staticmethod
    def check_traceback(case: Case, outcome: Outcome, where: str, text: str) -> None:
        """A traceback is a finding unless the signal came before the first line of the program."""
        if re.search(r"dlhw/train\.py\", line \d+, in main\n", text):
            lines = f"exit code {outcome.code}, {len(text.splitlines())} lines\n{last_lines(text)}"
            case.find("traceback", f"{where}: {lines}")
        else:
            case.counted.append("signals: while Python imported the program")

    def undisturbed(self, case: Case, name: str, cold: bool) -> Measuring:
        """Return what a scenario does without a kill; it is run when the first case asks for it."""
        scenario, kept = SCENARIOS[name], self.root / f"{name}{' cold' if cold else ''}"
        if kept not in self.known:
            at = case.directory / "undisturbed"
            at.mkdir()
            prepare_directory(at, scenario)
            prepare = None if cold else functools.partial(count_operations, at / "notes")
            started = time.monotonic()
            outcome = yield Command(
                scenario.command_line(), at=at, cold=cold, env=python_path(cold), prepare=prepare, seconds=300
            )
            case.commands.clear()
            assert outcome.code == 0, f"{outcome.command.text()}\n{outcome.err}"
            operations, claimed = (1, 0.0) if cold else json.loads((at / "notes").read_text())
            kept.parent.mkdir(parents=True, exist_ok=True)
            if kept not in self.known:  # another case may have run it meanwhile
                at.rename(kept)
                results = fingerprint(kept / "killed")
                self.known[kept] = Undisturbed(kept / "killed", outcome.seconds, claimed - started, operations, results)
        return self.known[kept]


def restart(case: Case, scenario: Scenario, command: Callable[[tuple[str, ...]], Command]) -> Restart:
    """Start a run or sweep again that was killed, with ``command``. Return whether it reached its end."""
    tried, directory = [], case.directory / "killed"
    for arguments in scenario.command_lines_after_kill(directory, case.draw):
        outcome = yield command(arguments)
        text = outcome.out + outcome.err
        (case.directory / "output-final").write_text(text)
        if outcome.timed_out:
            case.find("hang", f"no end within {outcome.command.seconds:.0f} s after a kill\n{last_lines(text)}")
            return False
        if has_traceback(text):
            case.find("traceback", f"after a kill\n{last_lines(text)}")
            return False
        if outcome.orphans:
            case.find("leftover process", "processes were left after the end")
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


def prepare_directory(directory: Path, scenario: Scenario) -> None:
    """Make what a scenario needs besides its command."""
    if scenario.pictures:
        save_photos(directory / "photos", per_class=scenario.pictures, side=40)


def python_path(cold: bool) -> dict[str, str]:
    """Return the environment in which a new Python process finds the code beside this file."""
    if not cold:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))}


def killed_command(
    case: Case, arguments: tuple[str, ...], kill: Kill, output: Path, *, cold: bool, seconds: float
) -> tuple[Command, Callable[[], object]]:
    """Return a command that is killed, and the function to call at its end. Its output is in the file ``output``."""
    ready, descriptor = output.with_name(f"{output.name}.ready"), append_only(output)
    directory = case.directory / "killed"

    def mark() -> bool:
        """Write to the output that the signal is sent now."""
        if not ready.exists():
            return False
        os.write(descriptor, mark_line(directory))
        return True

    interruptions = []
    for index, number in enumerate(kill.numbers if kill.after is not None else ()):
        first = index == 0
        after = kill.after if first and kill.after is not None else SECOND_AFTER
        interruptions.append(Interruption(number, after, mark if first else None, kill.whole_group))
    prepare = functools.partial(prepare_child, ready, directory, kill)
    command = Command(
        arguments,
        at=case.directory,
        stdout=descriptor,
        stderr=descriptor,
        cold=cold,
        env=python_path(cold),
        prepare=prepare,
        interruptions=tuple(interruptions),
        seconds=seconds,
    )
    return command, functools.partial(os.close, descriptor)


def prepare_child(ready: Path, directory: Path, kill: Kill) -> None:
    """Tell the parent that the program starts, or send the signal from within at an operation on files."""
    ready.touch()
    if kill.operation is not None:
        send_at_operation(kill.operation, kill.numbers[0], directory)


def mark_line(directory: Path) -> bytes:
    """Return the line that marks a signal: the time and what the program was doing."""
    return f"{MARK}{time.monotonic():.4f} {phase(directory)}\n".encode()


def phase(directory: Path) -> str:
    """Return what a run or sweep is doing, by the files that it has written."""

    def has(*names: str) -> bool:
        return any((directory / name).exists() for name in names)

    if not has(""):
        return "composing"
    if not has("config.yaml", "multirun.yaml"):
        return "claiming its directory or loading data"
    if has("multirun.yaml"):
        jobs = len(list(directory.glob("*/config.yaml")))
        finished = len(list(directory.glob("*/summary.json")))
        if not jobs:
            return "starting the first job"
        return "running jobs" if finished < jobs or not finished else "between two jobs or comparing"
    if not has("last.pt", "summary.json"):
        return "training before the first checkpoint"
    return "training" if not has("summary.json", "curves.png") else "ending"


def is_operation(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Return whether an audit event is an operation on a file below ``root`` or below the working directory."""
    if event not in EVENTS or not arguments or not isinstance(arguments[0], str | bytes):
        return False
    path = os.fsdecode(arguments[0])
    return path.startswith(root) or not path.startswith("/")


def send_at_operation(number: int, sent: int, directory: Path) -> None:
    """Send a signal to this process at its ``number``-th operation on files."""
    count, root = 0, str(directory.parent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if is_operation(event, arguments, root):
            count += 1
            if count == number:
                count = sys.maxsize // 2  # the next lines look at files
                os.write(2, mark_line(directory))
                os.kill(os.getpid(), sent)

    sys.addaudithook(hook)


def count_operations(notes: Path) -> None:
    """At the end, write the number of this process's operations on files and the time of its first directory."""
    count, claimed, root = 0, 0.0, str(notes.parent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, claimed
        if is_operation(event, arguments, root):
            count += 1
            if event == "os.mkdir" and os.fsdecode(arguments[0]).endswith("killed"):
                claimed = claimed or time.monotonic()

    def write() -> None:
        notes.write_text(json.dumps([count, claimed]))

    sys.addaudithook(hook)
    atexit.register(write)


def same_up_to_rounding(one: Path, other: Path) -> bool:
    """Return whether two tables have the same text and numbers, up to rounding."""
    with one.open(newline="") as ours, other.open(newline="") as theirs:
        rows, expected = list(csv.reader(ours)), list(csv.reader(theirs))
    return len(rows) == len(expected) and all(map(_same_cells, rows, expected))


def _same_cells(ours: list[str], theirs: list[str]) -> bool:
    def same(one: str, other: str) -> bool:
        with contextlib.suppress(ValueError):
            return one == other or math.isclose(float(one), float(other), rel_tol=1e-4, abs_tol=1e-6)
        return False

    return len(ours) == len(theirs) and all(map(same, ours, theirs))


def main() -> None:
    options_parser = parser(__doc__ or "", count=500)
    options_parser.add_argument(
        "--cold", type=float, default=0.06, help="share of new Python processes (default: 0.06)"
    )
    options_parser.add_argument(
        "--limit", type=float, default=60, help="seconds for one command, more on a busy machine (default: 60)"
    )
    options_parser.add_argument("--kills", type=int, default=3, help="most kills in one case (default: 3)")
    options_parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="default: all"
    )
    options = options_parser.parse_args()
    more = [] if options.scenarios == list(SCENARIOS) else ["--scenarios", *options.scenarios]
    more += [] if options.cold == 0.06 else ["--cold", str(options.cold)]
    with working_directory() as directory:
        kills = Drill(
            directory / "undisturbed",
            names=options.scenarios,
            cold=options.cold,
            seconds=options.limit,
            most_kills=options.kills,
        )
        code = drill(options, directory, kills.steps, repeat=repeat_line("kills.py", options, *more))
    sys.exit(code)


if __name__ == "__main__":
    main()
