"""Kill runs with several processes, and sweeps whose jobs run in other processes; then resume and compare.

    python scripts/drills/launchers.py                              20 cases each
    python scripts/drills/launchers.py --launchers torchrun --only 7

``torchrun`` is a run with two processes, ``joblib`` and ``submitit`` are sweeps with Hydra's launchers of these names,
the latter with its local executor. A case kills the first process, one worker, or the whole group by SIGKILL, SIGTERM
or SIGINT, at a moment that is uniform over the whole run or over the epochs. All are new Python processes,
so that a case takes half a minute on two busy cores.

A finding is: a process that is left ten seconds after the end; a command that does not end; a traceback of dlhw; a
directory that cannot be resumed; a metric, tensor or table that differs in one bit from those of an undisturbed run
with the same launcher; partial files. What torchrun itself prints about a worker that ended is its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cases import (
    Case,
    Steps,
    append_only,
    drill,
    fingerprint,
    has_traceback,
    last_lines,
    parser,
    patience,
    repeat_line,
    working_directory,
)
from children import Child, Command, Interruption, Outcome, run
from corpus import SMALL
from kills import MARK, SIGNALS, Scenario, Undisturbed, check_results, mark_line, python_path, restart

PATIENCE = 10.0
"""Seconds in which all processes must end after the first one."""
SEEN_AS = "DLHW_DRILL"
"""A variable in the environment of all processes of a command, by which they are found."""
JOBS = ("-m", *SMALL, "trainer.epochs=80", "seed=0,1,2", "comparison.curves=[]")
LAUNCHERS = {
    "torchrun": Scenario(1, (*SMALL, "trainer.epochs=80", "trainer.batch_size=64")),
    "joblib": Scenario(1, (*JOBS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
    "submitit": Scenario(1, (*JOBS, "hydra/launcher=submitit_local")),
}
TARGETS = ("first process", "worker", "group")


class PatientChild(Child):
    """A command whose processes may go on after the end of the first one; the drill looks for them itself."""

    def _end(self, status: int) -> None:
        self._code, self._seconds = os.waitstatus_to_exitcode(status), self.seconds


@dataclass(frozen=True)
class LauncherCommand(Command):
    """A command of several processes."""

    child: ClassVar[type[Child]] = PatientChild


class Drill:
    """The cases of one launcher."""

    def __init__(self, root: Path, name: str, *, seconds: float) -> None:
        self.root = root
        self.name = name
        self.scenario = LAUNCHERS[name]
        self.seconds = seconds

    def steps(self, case: Case) -> Steps:
        """Start, kill, resume and compare."""
        undisturbed, draw = self.undisturbed(), case.draw
        number, target = draw.choice(SIGNALS), draw.choice(TARGETS)
        rows = draw.randint(1, undisturbed.operations) if draw.random() < 0.75 else 0
        after = draw.uniform(0, 0.5 if rows else undisturbed.seconds)
        case.title = f"{self.name}; {signal.Signals(number).name} to the {target} after {after:.1f} s"
        case.title += f" from epoch {rows} on" if rows else ""
        case.counted += [f"of {self.name}", f"to the {target}"]
        output = case.directory / "output"
        command, close = self.killed(case, number, target, after, rows=rows, output=output)
        outcome = yield command
        close()
        self.check_killed(case, outcome, output.read_text(errors="replace"), target)
        if not self.scenario.finished(case.directory / "killed"):
            ended = yield from restart(case, self.scenario, functools.partial(self.command, case))
            left = leftover(mark_of(case))
            if left:
                case.find("leftover process", f"after the end: {'; '.join(left)}")
            if not ended:
                return
        check_results(case, undisturbed)

    def killed(
        self, case: Case, number: int, target: str, after: float, *, rows: int, output: Path
    ) -> tuple[Command, Callable[[], object]]:
        """Return the command that is killed, and the function to call at its end."""
        descriptor = append_only(output)
        moment = functools.partial(
            self.moment_of_kill, case, number, target, left=[after], rows=rows, descriptor=descriptor
        )
        interruption = Interruption(number, when=moment, whole_group=target == "group")
        command = self.command(case, self.scenario.command_line(), interruption=interruption, descriptor=descriptor)
        return command, functools.partial(os.close, descriptor)

    def moment_of_kill(
        self, case: Case, number: int, target: str, *, left: list[float], rows: int, descriptor: int
    ) -> bool:
        """Return whether the signal is due. A worker gets it here, because it is not the command's first process.

        ``left`` holds the seconds from the ``rows``-th epoch on, then the moment too; it is empty afterwards.
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
            os.kill(random.Random(case.number).choice(workers), number)
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
        return LauncherCommand(
            arguments,
            at=case.directory,
            module=module,
            cold=True,
            env={**python_path(cold=True), "OMP_NUM_THREADS": "1", SEEN_AS: mark_of(case)},
            stdout=descriptor,
            stderr=descriptor,
            interruptions=(interruption,) if interruption else (),
            seconds=patience(self.seconds),
        )

    def check_killed(self, case: Case, outcome: Outcome, text: str, target: str) -> None:
        """Check how the command ended after its signal, and that all its processes ended."""
        before, mark, after = text.partition(MARK)
        case.counted.append(
            f"signals: {after.partition(chr(10))[0].partition(' ')[2]}" if mark else "signals: too late"
        )
        if outcome.timed_out:
            case.find("hang", f"no end within {outcome.seconds:.0f} s\n{last_lines(text)}")
        left = leftover(mark_of(case))
        if left:
            case.find("leftover process", f"{PATIENCE:.0f} s after the end: {'; '.join(left)}")
        if has_traceback(after) and re.search(r"/dlhw/(?!train\.py)", after) and self.name != "torchrun":
            case.find("traceback", f"exit code {outcome.code}\n{last_lines(after)}")
        allowed = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
        if outcome.code not in allowed:
            case.find("exit code", f"{outcome.code}\n{last_lines(after)}")
        if mark and outcome.code == 0 and target == "first process" and "lowest mean" not in before:
            finished = self.scenario.finished(case.directory / "killed")
            if not finished:
                case.find("lost interrupt", f"exit code 0\n{last_lines(after)}")

    @functools.cache  # noqa: B019
    def undisturbed(self) -> Undisturbed:
        """Run without a kill, and measure it."""
        case = Case(-1, random.Random(0), self.root)
        self.root.mkdir(parents=True)
        outcome = run(replace(self.command(case, self.scenario.command_line()), seconds=1000.0))
        assert outcome.code == 0, f"{outcome.command.text()}\n{outcome.err}"
        directory = self.root / "killed"
        return Undisturbed(directory, outcome.seconds, 0.0, finished_epochs(directory), fingerprint(directory))


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
    """Wait until no process has this mark. Kill those that are left after ``PATIENCE`` seconds, and return them."""
    deadline = time.monotonic() + patience(PATIENCE)
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
    options_parser = parser(__doc__ or "", count=20)
    options_parser.add_argument(
        "--limit", type=float, default=100, help="seconds for one command, more on a busy machine (default: 100)"
    )
    options_parser.add_argument(
        "--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS), help="default: all"
    )
    options = options_parser.parse_args()
    codes = []
    for name in options.launchers:
        print(f"== {name}")
        with working_directory() as directory:
            launcher = Drill(directory / "undisturbed", name, seconds=options.limit)
            repeat = repeat_line("launchers.py", options, "--launchers", name)
            codes.append(drill(options, directory, launcher.steps, repeat=repeat))
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
