"""Kill runs with several processes, and sweeps whose jobs run in other processes; then resume and compare.

    python scripts/drills/launchers.py                              20 cases of each launcher
    python scripts/drills/launchers.py --launchers torchrun --only 7

``torchrun`` is a run with two processes, ``joblib`` and ``submitit`` are sweeps with Hydra's launchers of these names;
submitit uses its local executor. A case kills the first process, one worker, or the whole group by SIGKILL, SIGTERM or
SIGINT, at a moment that is uniform over the whole run or over the epochs. All are new Python processes, so that a case
takes half a minute on two busy cores.

A finding is: a process still runs ten seconds after the end; a command does not end; a traceback other than torchrun's
own, see :func:`tracebacks`; an exit code other than those of :func:`expected_codes`; a directory cannot be resumed; a
metric, tensor or table differs in one bit from those of an undisturbed run with the same launcher; partial files.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from cases import Case, Steps, drill, options_parser
from children import run
from command_line import Command, Interruption, Outcome
from corpus import SMALL
from fingerprints import fingerprint
from moments import MARK, appended, mark_line
from resuming import SIGNALS, Scenario, Undisturbed, check_results, python_path, restart
from verdicts import TRACEBACKS, functions_of_dlhw, is_interrupted_import, last_lines, patience

LEFT_SECONDS = 10.0
"""Seconds in which all processes must end after the first one."""
SEEN_AS = "DLHW_DRILL"
"""The drill finds all processes of a command by this environment variable."""
JOBS = ("-m", *SMALL, "trainer.epochs=80", "seed=0,1,2", "comparison.curves=[]")
LAUNCHERS = {
    "torchrun": Scenario(1, (*SMALL, "trainer.epochs=80", "trainer.batch_size=64")),
    "joblib": Scenario(1, (*JOBS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
    "submitit": Scenario(1, (*JOBS, "hydra/launcher=submitit_local")),
}
TARGETS = ("first process", "worker", "group")
OWN_ERRORS = {"torchrun": r"^torch\.distributed\.elastic\.\S*(SignalException|ChildFailedError)"}
"""The errors that a launcher itself raises, with a traceback, when it or a worker gets a signal."""


class Drill:
    """The cases of one launcher."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root = root
        (self.name,) = options.launchers
        self.scenario = LAUNCHERS[self.name]
        self.seconds: float = options.seconds

    def steps(self, case: Case) -> Steps:
        """Start, kill, resume and compare."""
        undisturbed, draw = self.undisturbed(), case.draw
        number, target = draw.choice(SIGNALS), draw.choice(TARGETS)
        rows = draw.randint(1, undisturbed.operations) if draw.random() < 0.75 else 0
        after = draw.uniform(0, 0.5 if rows else undisturbed.seconds)
        case.title = f"{self.name}; {number.name} to the {target} after {after:.1f} s"
        case.title += f" from epoch {rows} on" if rows else ""
        case.counted += [f"of {self.name}", f"to the {target}"]
        output = case.directory / "output"
        with appended(output) as descriptor:
            moment = functools.partial(
                self.moment_of_kill, case, number, target, left=[after], rows=rows, descriptor=descriptor
            )
            interruption = Interruption(number, when=moment, whole_group=target == "group")
            line = self.scenario.command_line()
            outcome = yield self.command(case, line, interruption=interruption, descriptor=descriptor)
        if left := leftover(mark_of(case)):
            case.find("leftover process", f"{LEFT_SECONDS:.0f} s after the end: {'; '.join(left)}")
        finished = self.scenario.finished(case.directory / "killed")
        check_killed(case, outcome, self.name, number, target, finished=finished)
        if not finished:
            ended = yield from restart(case, self.scenario, functools.partial(self.command, case))
            if left := leftover(mark_of(case)):
                case.find("leftover process", f"after the end: {'; '.join(left)}")
            if not ended:
                return
        check_results(case, undisturbed)

    def moment_of_kill(
        self, case: Case, number: signal.Signals, target: str, *, left: list[float], rows: int, descriptor: int
    ) -> bool:
        """Return whether the signal is due. A worker gets it here, because it is not the command's first process.

        ``left`` holds the seconds to wait after the ``rows``-th epoch, then also the moment; it is empty afterwards.
        """
        if not left or (rows and finished_epochs(case.directory / "killed") < rows):
            return False
        if len(left) == 1:
            left.append(time.monotonic() + left[0])
        if time.monotonic() < left[1]:
            return False
        workers = processes(mark_of(case))[1:]
        if target == "worker" and not workers:
            return False
        left.clear()
        os.write(descriptor, mark_line(case.directory / "killed"))
        if target != "worker":
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(case.draw.choice(workers), number)
        return False

    def command(
        self,
        case: Case,
        arguments: tuple[str, ...],
        *,
        interruption: Interruption | None = None,
        descriptor: int | None = None,
    ) -> Command:
        """Return the command with these arguments, as new processes."""
        module = "dlhw.train"
        if self.name == "torchrun":
            module = "torch.distributed.run"
            arguments = ("--standalone", "--nproc-per-node=2", "-m", "dlhw.train", *arguments)
        return Command(
            arguments,
            at=case.directory,
            module=module,
            cold=True,
            env={**python_path(cold=True), "OMP_NUM_THREADS": "1", SEEN_AS: mark_of(case)},
            stdout=descriptor,
            stderr=descriptor,
            interruptions=(interruption,) if interruption else (),
            seconds=patience(self.seconds),
            others_seconds=None,  # the drill looks for them by SEEN_AS
        )

    @functools.cache  # noqa: B019
    def undisturbed(self) -> Undisturbed:
        """Run without a kill, and measure it."""
        case = Case("undisturbed", random.Random(0), self.root)
        self.root.mkdir(parents=True)
        outcome = run(replace(self.command(case, self.scenario.command_line()), seconds=1000.0))
        assert outcome.code == 0, f"{outcome.command.text()}\n{outcome.err}"
        directory = self.root / "killed"
        return Undisturbed(directory, outcome.seconds, 0.0, finished_epochs(directory), fingerprint(directory))


def check_killed(
    case: Case, outcome: Outcome, launcher: str, number: signal.Signals, target: str, *, finished: bool
) -> None:
    """Check how a command ended after its signal, with its output in the file ``output`` of the case."""
    before, mark, after = (case.directory / "output").read_text(errors="replace").partition(MARK)
    phase = after.partition("\n")[0].partition(" ")[2]
    case.counted.append(f"signals: {phase or 'the command had ended before'}")
    if outcome.timed_out:
        case.find("hang", f"no end within {outcome.seconds:.0f} s\n{last_lines(before + after)}")
        return
    for text in tracebacks(after if mark else before, launcher):
        case.find("traceback", f"exit code {outcome.code}, while {phase}\n{last_lines(text, count=20)}")
    codes = expected_codes(launcher, number, target) if mark else {0}
    if outcome.code not in codes | ({0} if finished else set()):
        expected = " or ".join(map(str, sorted(codes)))
        case.find("exit code", f"{outcome.code} instead of {expected}, while {phase}\n{last_lines(after)}")


def expected_codes(launcher: str, number: signal.Signals, target: str) -> set[int]:
    """Return the exit codes that a launcher may have after a signal, if its work was not finished.

    A signal ends the first process as it ends ``python -m dlhw.train``: 130, 143, or the signal itself before the
    program starts. ``torchrun`` has exit code 1 instead, by its uncaught SignalException or ChildFailedError. When a
    worker is killed, its job fails: exit code 1.
    """
    if target == "worker":
        return {1}
    if number == signal.SIGKILL:
        return {-number}
    return {1 if launcher == "torchrun" else 128 + number, -number}


def tracebacks(text: str, launcher: str) -> list[str]:
    """Return the tracebacks in an output that are findings.

    Two kinds are not: one that ends in the launcher's own error and has no frame in dlhw, and a KeyboardInterrupt while
    Python imports the program, whose frames in dlhw are all ``<module>``.
    """
    found = [text[text.index(start) :] for start in TRACEBACKS[1:] if start in text]
    for part in text.split(TRACEBACKS[0])[1:]:
        own = launcher in OWN_ERRORS and re.search(OWN_ERRORS[launcher], part, re.MULTILINE)
        if not (is_interrupted_import(part) or (own and not functions_of_dlhw(part))):
            found.append(TRACEBACKS[0] + part)
    return found


def finished_epochs(directory: Path) -> int:
    """Return the number of epochs that a run or all jobs of a sweep have finished."""
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in directory.glob("**/metrics.csv"))


def mark_of(case: Case) -> str:
    """Return the value of SEEN_AS for a case."""
    return f"{os.getpid()}/{case.directory}"


def processes(mark: str) -> list[int]:
    """Return the living processes with this mark, the first one first."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and f"{SEEN_AS}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return sorted(found)


def leftover(mark: str) -> list[str]:
    """Wait until no process has this mark. Kill those that are left after ``LEFT_SECONDS`` seconds, and return them."""
    deadline = time.monotonic() + patience(LEFT_SECONDS)
    while left := processes(mark):
        if time.monotonic() > deadline:
            lines = []
            for pid in left:
                with contextlib.suppress(OSError):
                    lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:100])
                    os.kill(pid, signal.SIGKILL)
            return lines
        time.sleep(0.1)
    return []


def main() -> None:
    parser = options_parser(__doc__, count=20, seconds=100)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS), help="default: all")
    options = parser.parse_args()
    codes = []
    for name in options.launchers:
        print(f"== {name}")
        options.launchers = [name]
        codes.append(drill(parser, options, lambda directory: Drill(directory / "undisturbed", options).steps))
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
