"""Kill runs and sweeps at random moments, start them again until they end, and compare with an undisturbed one.

    python scripts/drills/kills.py --count 500 --seed 0
    python scripts/drills/kills.py --seed 0 --only 137 --verbose   repeat one case

A case starts a run, a run on a folder of pictures, a study, or a sweep with the basic or the vectorized launcher, and
sends SIGKILL, SIGTERM or SIGINT to the process or its group, sometimes twice within 50 ms. The moment is random:
uniform over the time until the directory exists, uniform over the whole run, or at one of the operations on files,
which a hook in the child counts (such a case is repeated exactly). Then it is resumed, or its command is started again,
and sometimes killed again, until it ends. ``--cold`` is the share of cases that start a new Python process, where the
signal may come during the imports; all others are forked from a process that has imported everything.

Findings, besides those of ``verdicts.py``: a signal has no effect; an exit code is not 130, 143 or the signal itself; a
run prints more than three lines after the signal; a directory can neither be resumed nor started again; a metric,
tensor or table differs in one bit; files named ``*.partial`` are left. Jobs of a vectorized sweep that are trained in
smaller groups after the kill may differ by rounding.
"""

from __future__ import annotations

import functools
import json
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

from cases import Case, Steps, drill, options_parser
from command_line import Command, Interruption, Outcome
from corpus import PICTURES, RUN, SMALL, SWEEP
from fingerprints import fingerprint
from moments import MARK, appended, count_operations, mark_line, send_at_operation
from resuming import SIGNALS, Scenario, Undisturbed, check_results, python_path, restart
from verdicts import is_interrupted_import, last_lines, patience, traceback_in

MOST_LINES = 3
"""Lines that a run may print after a signal."""
MOST_LINES_OF_SWEEP = 8
"""The same for a sweep, which prints the table of its settings."""
LATE_SECONDS = 0.5
"""A command that ends this soon after a signal may have ended without it."""
SECOND_AFTER = 0.05
"""Seconds between two signals."""
SLOW_SECONDS = 10.0
"""A command must end this soon after a signal."""
PROJECTION = ("study=projection",)

Measuring = Generator[Command, Outcome, Undisturbed]

SCENARIOS = {
    "run": Scenario(4, RUN),
    "run without checkpoints": Scenario(2, (*RUN, "trainer.checkpoint_seconds=1000", "model.batch_norm=true")),
    "pictures": Scenario(3, (*(line for line in PICTURES if "groups" not in line), "trainer.epochs=3"), pictures=60),
    "study": Scenario(1, PROJECTION),
    "sweep": Scenario(3, ("-m", *SMALL, "trainer.epochs=3", "seed=0,1,2", "comparison.curves=[]")),
    "vectorized": Scenario(2, (*SWEEP, "hydra/launcher=vectorized", "comparison.curves=[]")),
}


@dataclass(frozen=True)
class Kill:
    """A signal or two, when they are sent, and to which processes."""

    numbers: tuple[int, ...]
    whole_group: bool
    after: float | None = None
    operation: int | None = None

    def __str__(self) -> str:
        names = " and ".join(signal.Signals(number).name for number in self.numbers)
        moment = f"after {self.after:.3f} s" if self.operation is None else f"at file operation {self.operation}"
        return f"{names}{' to the group' if self.whole_group else ''} {moment}"

    def options(self, output: Path, directory: Path, descriptor: int) -> dict[str, Any]:
        """Return the options of a command that is killed.

        Args:
            output: the file of its output.
            directory: of its results.
            descriptor: of its output.
        """
        ready = output.with_name(f"{output.name}.ready")

        def mark() -> bool:
            """Write to the output that the signal is sent now."""
            if not ready.exists():
                return False
            os.write(descriptor, mark_line(directory))
            return True

        interruptions: list[Interruption] = []
        if self.after is not None:
            first, *others = self.numbers
            interruptions.append(Interruption(first, self.after, mark, self.whole_group))
            interruptions += [Interruption(number, SECOND_AFTER, None, self.whole_group) for number in others]
        return {
            "stdout": descriptor,
            "stderr": descriptor,
            "prepare": functools.partial(prepare_child, ready, directory, self),
            "interruptions": tuple(interruptions),
        }


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
        scenario.prepare(case.directory)
        directory, most_lines = case.directory / "killed", MOST_LINES_OF_SWEEP if scenario.is_sweep else MOST_LINES
        command_of = functools.partial(
            Command, at=case.directory, cold=cold, env=python_path(cold), seconds=patience(self.seconds)
        )
        case.title, arguments = f"{name}{', a new process' if cold else ''}", scenario.command_line()
        case.counted.append(f"of {case.title}")
        for attempt in range(min(draw.choice([1, 1, 2, 3]), self.most_kills)):
            kill = self.kill(draw, undisturbed, cold=cold)
            case.title += f"; {kill}"
            output = case.directory / f"output-{attempt}"
            with appended(output) as descriptor:
                outcome = yield command_of(arguments, **kill.options(output, directory, descriptor))
            text, finished = output.read_text(errors="replace"), scenario.finished(directory)
            if not check_killed(case, outcome, kill, text, late=finished, most_lines=most_lines):
                return
            if finished:
                break
            arguments = scenario.command_lines_after_kill(directory, draw)[0]
        if not scenario.finished(directory):
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

    def undisturbed(self, case: Case, name: str, cold: bool) -> Measuring:
        """Return the results of a scenario without a kill. The first case that needs them runs it."""
        scenario, kept = SCENARIOS[name], self.root / f"{name}{' cold' if cold else ''}"
        if kept not in self.known:
            at = case.directory / "undisturbed"
            at.mkdir()
            scenario.prepare(at)
            prepare = None if cold else functools.partial(count_operations, at / "notes")
            started = time.monotonic()
            outcome = yield Command(
                scenario.command_line(), at=at, cold=cold, env=python_path(cold), prepare=prepare, seconds=300
            )
            case.outcomes.clear()
            assert outcome.code == 0, f"{outcome.command.text()}\n{outcome.err}"
            operations, claimed = (1, 0.0) if cold else json.loads((at / "notes").read_text())
            kept.parent.mkdir(parents=True, exist_ok=True)
            if kept not in self.known:  # another case may have run it at the same time
                at.rename(kept)
                results = fingerprint(kept / "killed")
                self.known[kept] = Undisturbed(kept / "killed", outcome.seconds, claimed - started, operations, results)
        return self.known[kept]


def check_killed(case: Case, outcome: Outcome, kill: Kill, text: str, *, late: bool, most_lines: int) -> bool:
    """Check how a command ended after its signal. Return whether it may be started again."""
    _, mark, after = text.partition(MARK)
    if not mark:
        return check_ended_before(case, outcome, text)
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
    if traceback_in(after):
        if is_interrupted_import(after):
            case.counted.append("signals: while Python imported the program")
        else:
            case.find("traceback", f"{where}: exit code {outcome.code}\n{last_lines(after)}")
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


def check_ended_before(case: Case, outcome: Outcome, text: str) -> bool:
    """Check a command that ended before its signal. Return whether it may be started again."""
    case.counted.append("signals: the command had ended before")
    if outcome.timed_out:
        case.find("hang", f"no end within {outcome.seconds:.0f} s\n{last_lines(text)}")
    elif outcome.code:
        case.find("stuck", f"exit code {outcome.code} before the signal\n{last_lines(text)}")
    return outcome.code == 0


def prepare_child(ready: Path, directory: Path, kill: Kill) -> None:
    """Tell the parent that the program starts, or send the signal from this process at an operation on files."""
    ready.touch()
    if kill.operation is not None:
        send_at_operation(kill.operation, kill.numbers[0], directory)


def main() -> None:
    parser = options_parser(__doc__, count=500, seconds=60)
    parser.add_argument("--cold", type=float, default=0.06, help="share of new Python processes (default: 0.06)")
    parser.add_argument("--kills", type=int, default=3, help="most kills in one case (default: 3)")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="default: all")
    options = parser.parse_args()

    def steps_in(directory: Path) -> Callable[[Case], Steps]:
        return Drill(
            directory / "undisturbed",
            names=options.scenarios,
            cold=options.cold,
            seconds=options.seconds,
            most_kills=options.kills,
        ).steps

    sys.exit(drill(parser, options, steps_in))


if __name__ == "__main__":
    main()
