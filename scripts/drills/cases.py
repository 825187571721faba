"""Run the cases of a drill, several at a time, and report what they find.

A case is a sequence of commands: a generator that yields each command and receives its outcome. Its random numbers
depend only on the drill's seed and its own name, so that it can be repeated alone.
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))  # the drills test the code in this repository

from children import Child, preload  # noqa: E402
from command_line import Command, Outcome  # noqa: E402

SHOWN_CHARACTERS = 8000
"""The last characters of an output that ``--verbose`` prints."""
NOT_REPEATED = ("count", "start", "only", "programs", "list", "jobs", "keep", "verbose", "seconds")
"""Options that do not change what a case does, and so are not in the command that repeats it."""

Steps = Generator[Command, Outcome, None]


@dataclass
class Case:
    """One case of a drill.

    Args:
        name: with the drill's seed, it determines everything that the case does.
        draw: its random numbers.
        directory: its own directory, which is removed at its end.
        title: what it does, in a few words.
        counted: words that the drill counts over all cases.
        findings: pairs of a kind and a description.
        outcomes: of the commands so far.
    """

    name: str
    draw: random.Random
    directory: Path
    title: str = ""
    counted: list[str] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def find(self, kind: str, text: str = "") -> None:
        """Add a finding."""
        self.findings.append((kind, text))


def options_parser(description: str | None, *, count: int | None = None, seconds: float) -> argparse.ArgumentParser:
    """Return the options that the drills have in common. A drill with a ``count`` numbers its cases."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if count is not None:
        parser.add_argument("--count", type=int, default=count, help=f"number of cases (default: {count})")
        parser.add_argument("--start", type=int, default=0, help="number of the first case (default: 0)")
        parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
        parser.add_argument("--only", type=int, nargs="+", metavar="CASE", help="run these cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    text = f"time limit of a command, longer on a busy machine (default: {seconds:.0f})"
    parser.add_argument("--seconds", type=float, default=seconds, help=text)
    parser.add_argument("--keep", action="store_true", help="keep the directories of cases with findings")
    parser.add_argument("--verbose", action="store_true", help="print the output of every command")
    return parser


def repeat_line(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """Return the command that repeats a case, without the case's name."""
    words = ["python", f"scripts/drills/{Path(sys.argv[0]).name}"]
    for name, value in vars(options).items():
        if name not in NOT_REPEATED and (name == "seed" or value != parser.get_default(name)):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, "--verbose", "--only"])


def drill(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    steps_in: Callable[[Path], Callable[[Case], Steps]],
    names: Sequence[str] | None = None,
) -> int:
    """Run the cases that the options ask for, print what they find, and return the exit code.

    Args:
        parser: from :func:`options_parser`.
        options: that it has parsed.
        steps_in: returns the commands of a case, given a temporary directory.
        names: of the cases; None: their numbers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if names is None:
        names = [str(number) for number in options.only or range(options.start, options.start + options.count)]
    directory = Path(tempfile.mkdtemp(prefix="dlhw-drill-"))
    cases = directory / "cases"
    try:
        return report(names, steps_in(directory), cases, options, repeat=repeat_line(parser, options))
    finally:
        if not (options.keep and cases.is_dir() and any(cases.iterdir())):
            shutil.rmtree(directory, ignore_errors=True)


def report(
    names: Sequence[str], steps: Callable[[Case], Steps], directory: Path, options: argparse.Namespace, *, repeat: str
) -> int:
    """Run cases in ``directory``, print what they find, and return the exit code."""
    seed = getattr(options, "seed", 0)
    cases = (
        Case(name, random.Random(f"{seed}/{name}"), directory / str(position)) for position, name in enumerate(names)
    )
    findings: dict[str, list[Case]] = {}
    counted: Counter[str] = Counter()
    started, done, interrupted = time.monotonic(), 0, False
    try:
        for case in run_cases(cases, steps, jobs=options.jobs):
            done += 1
            counted.update(case.counted)
            for kind, _ in case.findings:
                findings.setdefault(kind, []).append(case)
            if case.findings or options.verbose:
                print(described(case, repeat=repeat, outputs=options.verbose), flush=True)
            if case.findings and options.keep:
                print(f"  kept: {case.directory}", flush=True)
            else:
                shutil.rmtree(case.directory, ignore_errors=True)
            if not done % 100:
                print(f"{done} cases, {sum(map(len, findings.values()))} findings", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        interrupted = True
    print(f"\n{done} cases in {time.monotonic() - started:.0f} s{', interrupted' if interrupted else ''}")
    for text, times in sorted(counted.items()):
        print(f"  {times:5} {text}")
    for kind, found in sorted(findings.items(), key=lambda item: -len(item[1])):
        shortest = min(found, key=lambda case: len(case.title))
        print(f"{len(found)} x {kind}\n    {shortest.title}\n    repeat: {repeat} {shlex.quote(shortest.name)}")
    if not findings:
        print("no findings")
    return 1 if findings else 130 if interrupted else 0


def described(case: Case, *, repeat: str, outputs: bool) -> str:
    """Return what a case did and found, and with ``outputs`` also what its commands printed."""
    lines = [f"\ncase {case.name}: {case.title}"]
    for outcome in case.outcomes:
        lines.append(f"  $ {outcome.command.text()}")
        if outputs:
            lines.append(f"exit code {outcome.code}, {outcome.seconds:.1f} s")
            lines += [f"--- stdout\n{outcome.out[-SHOWN_CHARACTERS:]}--- stderr\n{outcome.err[-SHOWN_CHARACTERS:]}---"]
    for kind, text in case.findings:
        lines += [f"finding: {kind}", *(f"    | {line}" for line in text.splitlines())]
    return "\n".join([*lines, f"  repeat: {repeat} {shlex.quote(case.name)}"])


def run_cases(cases: Iterable[Case], steps: Callable[[Case], Steps], *, jobs: int) -> Iterator[Case]:
    """Run cases, ``jobs`` of them at a time, and yield each at its end."""
    preload()
    waiting = iter(cases)
    running: list[tuple[Case, Steps, Child]] = []
    more = True
    try:
        while more or running:
            while more and len(running) < jobs:
                case = next(waiting, None)
                if case is None:
                    more = False
                    break
                case.directory.mkdir(parents=True)
                generator = steps(case)
                first = start_next(generator)
                if first is None:
                    yield case
                else:
                    running.append((case, generator, first))
            ended = [one for one in running if one[2].ended()]
            running = [one for one in running if one not in ended]
            for case, generator, child in ended:
                case.outcomes.append(child.outcome())
                following = start_next(generator, case.outcomes[-1])
                if following is None:
                    yield case
                else:
                    running.append((case, generator, following))
            if not ended:
                time.sleep(0.004)
    finally:
        for _, generator, child in running:
            child.kill()
            generator.close()


def start_next(generator: Steps, outcome: Outcome | None = None) -> Child | None:
    """Start the next command of a case, given the outcome of the one before. Return None at the end of the case."""
    try:
        return Child(next(generator) if outcome is None else generator.send(outcome))
    except StopIteration:
        return None
