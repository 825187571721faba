"""Run the numbered cases of a drill, several at a time, and report what they find.

A case is a sequence of commands: a generator that yields each command and receives its outcome. All its random numbers
follow from the drill's seed and its own number, so that it can be repeated alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))  # the drills test the code beside them

from children import Child, Command, Outcome, preload  # noqa: E402

KINDS = (
    "code executed",
    "wrong result",
    "lost file",
    "lost interrupt",
    "hang",
    "stuck",
    "leftover process",
    "traceback",
    "exit code",
    "leftover file",
    "message",
)
"""The kinds of findings, the worst first."""
SHOWN_LINES = 6
"""Lines of output that are printed with a finding."""

Steps = Generator[Command, Outcome, None]


@dataclass
class Case:
    """One case of a drill.

    Args:
        number: with the drill's seed, it determines everything that the case does.
        draw: its random numbers.
        directory: its own, which is removed at its end.
        title: what it does, in a few words.
        counted: words that the drill counts over all cases.
        findings: pairs of a kind and a description.
        commands: the commands so far, as shell lines.
    """

    number: int
    draw: random.Random
    directory: Path
    title: str = ""
    counted: list[str] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def find(self, kind: str, text: str) -> None:
        """Add a finding."""
        assert kind in KINDS
        self.findings.append((kind, text))


def drive(cases: Iterable[Case], steps: Callable[[Case], Steps], *, jobs: int) -> Iterator[Case]:
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
                running.append((case, generator, start(next(generator))))
            ended = [one for one in running if one[2].ended()]
            running = [one for one in running if one not in ended]
            for case, generator, child in ended:
                outcome = child.outcome()
                case.commands.append(outcome.command.text())
                try:
                    running.append((case, generator, start(generator.send(outcome))))
                except StopIteration:
                    yield case
            if not ended:
                time.sleep(0.004)
    finally:
        for _, _, child in running:
            child.kill()


def start(command: Command) -> Child:
    """Start a command, as the kind of child that it asks for."""
    kind = getattr(command, "child", Child)
    child: Child = kind(command)
    return child


def parser(description: str, *, count: int) -> argparse.ArgumentParser:
    """Return the options that all these drills have."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--count", type=int, default=count, help=f"number of cases (default: {count})")
    result.add_argument("--seed", type=int, default=0, help="the random numbers of all cases (default: 0)")
    result.add_argument("--only", type=int, nargs="+", metavar="CASE", help="repeat these cases")
    result.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    result.add_argument("--keep", action="store_true", help="keep the directories of cases with findings")
    return result


@contextlib.contextmanager
def working_directory() -> Iterator[Path]:
    """Create a directory for a drill, and remove it at the end unless a case with findings is kept in it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    directory = Path(tempfile.mkdtemp(prefix="dlhw-drill-"))
    try:
        yield directory
    finally:
        if not (directory / "kept").exists():
            shutil.rmtree(directory, ignore_errors=True)


def drill(options: argparse.Namespace, directory: Path, steps: Callable[[Case], Steps], *, repeat: str) -> int:
    """Run the cases that the options ask for, print what they find, and return the exit code.

    ``repeat`` is the command line that repeats a case, without the number.
    """
    numbers = options.only or range(options.count)
    cases = (
        Case(number, random.Random(f"{options.seed}/{number}"), directory / "cases" / str(number)) for number in numbers
    )
    kinds: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    started, done = time.monotonic(), 0
    for case in drive(cases, steps, jobs=options.jobs):
        done += 1
        counted.update(case.counted)
        for kind, text in case.findings:
            kinds[kind] += 1
            print(f"\n{kind}: {text}\n  case {case.number}: {case.title}\n  repeat: {repeat} --only {case.number}")
            print("\n".join(f"  $ {line}" for line in case.commands), flush=True)
        if case.findings and options.keep:
            (directory / "kept").mkdir(exist_ok=True)
            case.directory.replace(directory / "kept" / str(case.number))
            print(f"  kept: {directory / 'kept' / str(case.number)}")
        shutil.rmtree(case.directory, ignore_errors=True)
        if done % 100 == 0:
            print(f"{done} cases, {sum(kinds.values())} findings, {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(f"\n{done} cases in {time.monotonic() - started:.0f} s")
    for name, number in sorted(counted.items()):
        print(f"  {number:5} {name}")
    if not kinds:
        print("no findings")
        return 0
    print("findings")
    for kind in KINDS:
        if kinds[kind]:
            print(f"  {kinds[kind]:5} {kind}")
    return 1


def repeat_line(program: str, options: argparse.Namespace, *more: str) -> str:
    """Return the command that repeats a case of ``scripts/drills/<program>``, without the case's number."""
    return shlex.join(["python", f"scripts/drills/{program}", "--seed", str(options.seed), *more])


def patience(seconds: float) -> float:
    """Return a time limit for an idle machine, prolonged by the present load of this one."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def last_lines(text: str) -> str:
    """Return the last lines of an output, indented."""
    return "\n".join(f"    | {line[:300]}" for line in text.splitlines()[-SHOWN_LINES:])


def has_traceback(text: str) -> bool:
    """Return whether an output contains a traceback, of Python or of the interpreter's crash handler."""
    return bool(re.search(r"Traceback \(most recent call last\)|Fatal Python error|--- Logging error ---", text))


def fingerprint(directory: Path) -> dict[str, str]:
    """Return a digest of each result below a directory: metrics, tables, tensors, summaries without times.

    Equal runs have equal fingerprints. A file that cannot be read has its error as digest.
    """
    result = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.name in ("metrics.csv", "sweep.csv") or path.parent.name in ("tables", "probes"):
            result[name] = digest(path, lambda path: path.read_bytes())
        elif path.name in ("best.pt", "last.pt"):
            result[name] = digest(path, tensors)
        elif path.name == "summary.json":
            result[name] = digest(path, _summary)
    return result


def digest(path: Path, content: Callable[[Path], object]) -> str:
    """Return the digest of a file's content, or why it has none."""
    if not path.is_file():
        return "not a regular file"
    sha256 = hashlib.sha256()
    try:
        _update(sha256, content(path))
    except Exception as error:  # a broken file has an own digest, whatever is wrong with it
        return f"{type(error).__name__}: {error}"[:100]
    return sha256.hexdigest()


def tensors(path: Path) -> object:
    """Return the content of a checkpoint, without the config of its run, which has absolute paths."""
    import torch

    with warnings.catch_warnings(action="ignore"):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value for name, value in content.items() if name != "run"} if isinstance(content, dict) else content


def _summary(path: Path) -> object:
    """Return the content of ``summary.json`` without what differs between equal runs."""
    changing = (
        "seconds",
        "seconds_per_epoch",
        "command",
        "overrides",
        "git_revision",
        "versions",
        "device",
        "precision",
    )
    content = json.loads(path.read_bytes())
    return {name: value for name, value in content.items() if name not in changing}


def _update(sha256: Any, value: object) -> None:
    """Add a nested value to a digest, tensors with their exact bytes."""
    import torch

    if isinstance(value, torch.Tensor):
        sha256.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha256.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, dict):
        for name, part in value.items():
            sha256.update(f"{name!r}:".encode())
            _update(sha256, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _update(sha256, part)
        sha256.update(b"]")
    else:
        sha256.update(value if isinstance(value, bytes) else f"{value!r};".encode())


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of the files whose digests differ."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def append_only(path: Path) -> int:
    """Return the descriptor of a file for the output of a command."""
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)
