"""Run the commands of dlhw in bad surroundings, and report what should not happen.

    python scripts/drills/surroundings.py
    python scripts/drills/surroundings.py --only "full disk" --programs run sweep

Full and read-only disks, few files, little memory, closed or full streams, no home, odd directories, other encodings.
The file systems are mounted in a namespace of this process, which needs root; without it these surroundings are
skipped. ``docs/drills.md`` lists the findings.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cases import Case, Steps, drill, options_parser
from command_line import Command, Outcome
from commands import make_bait
from faults import Skipped, delete_working_directory, mounts_are_private, unmount
from lines import TINY
from places import REFUSED, Surrounding, surroundings
from verdicts import Snapshot, abandoned_directories, changed_files, patience, snapshot, verdicts

BETWEEN = ": "
"""Between the surroundings and the program in the name of a case."""


@dataclass(frozen=True)
class Program:
    """A command line of dlhw.

    Args:
        arguments: of the command line.
        module: of dlhw.
        writes: the folder that it writes to; empty if it only prints.
    """

    arguments: tuple[str, ...]
    module: str = "dlhw.train"
    writes: str = "outputs"

    @property
    def prints(self) -> bool:
        """Whether its result is on stdout."""
        return self.writes != "outputs"


DIGITS = ("dataset=digits", "model.hidden=[4]", *TINY)
PROGRAMS = {
    "run": Program(DIGITS),
    "sweep": Program(("-m", *DIGITS, "seed=0,1")),
    "study": Program(("study=cost", "dataset=digits", "trainer.device=cpu")),
    "compare": Program(("bait/sweep",), "dlhw.compare", "bait"),
    "predict": Program(("bait/pictures", "shots"), "dlhw.predict", ""),
    "help": Program(("--help",), writes=""),
    "config": Program(("--cfg", "job"), writes=""),
    "info": Program(("--info", "defaults"), writes=""),
    "mistake": Program(("optimizer.lr=abc",)),
}


def expected_codes(program_name: str, surrounding: Surrounding) -> Sequence[int]:
    """Return the valid exit codes of a program in these surroundings."""
    program = PROGRAMS[program_name]
    if program_name == "mistake":
        return (1, 120) if 120 in surrounding.writers else REFUSED
    if program.prints and surrounding.printing is not None:
        return surrounding.printing
    affected = program.writes and surrounding.folder in (".", program.writes)
    return surrounding.writers if affected else surrounding.others


def command_in(name: str, program_name: str, *, root: Path, bait: Path, seconds: float) -> Command:
    """Create the surroundings and return the command for them. Raise Skipped."""
    surrounding, program = surroundings()[name], PROGRAMS[program_name]
    work = root / surrounding.name
    shutil.copytree(bait, work, symlinks=True)
    (root / "home").mkdir()
    if surrounding.setup is not None:
        surrounding.setup(work)
    arguments = program.arguments
    if surrounding.arguments and program.module == "dlhw.train":
        flags = [word for word in arguments if not word.startswith("dataset=")]
        arguments = (*flags, *surrounding.arguments)
    return Command(
        arguments,
        work,
        program.module,
        env={"HOME": str(root / "home"), "PYTHONDONTWRITEBYTECODE": "1", **surrounding.env},
        stdin=_descriptor(surrounding.stdin),
        stdout=_descriptor(surrounding.stdout),
        stderr=_descriptor(surrounding.stderr),
        prepare=surrounding.prepare,
        shell=surrounding.shell,
        seconds=seconds,
        cold=surrounding.cold,
    )


@functools.cache
def _descriptor(source: str | int | None) -> int | None:
    return os.open(source, os.O_RDWR) if isinstance(source, str) else source


def examine(
    outcome: Outcome, program_name: str, surrounding: Surrounding, *, before: Snapshot
) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of everything that is wrong with an outcome."""
    codes = expected_codes(program_name, surrounding)
    problems = list(verdicts(outcome, codes=codes, sweep=program_name == "sweep"))
    silent = outcome.command.stderr is not None  # there is no message to see
    yield from (one for one in problems if not (silent and one[0] == "exit code 1 without a message"))
    if outcome.timed_out:
        return
    after = snapshot(outcome.command.at)
    own = "bait/sweep/" if program_name == "compare" else "\0"
    if changed := [name for name in changed_files(before, after) if not name.startswith(own)]:
        yield f"changed {changed[0]}", "\n".join(changed[:10])
    for name in ("bait/run", "bait/sweep", "bait/sweep/seed=0", "bait/pictures"):
        with contextlib.suppress(OSError):
            if '"finished"' not in (outcome.command.at / name / "summary.json").read_text():
                yield f"lost {name}/summary.json", ""
    finished = [name for name in after if name.endswith("summary.json") and name not in before]
    trains = program_name in ("run", "sweep", "study")
    if (
        outcome.code == 0
        and trains
        and not surrounding.arguments
        and surrounding.prepare is not delete_working_directory
    ):
        target = (outcome.command.at / "outputs").resolve()
        if not finished and not [*target.rglob("summary.json")]:
            yield "exit code 0 without a summary.json", outcome.err[-300:]
    for name in finished:
        try:
            json.loads((outcome.command.at / name).read_text())
        except ValueError:
            yield f"broken {Path(name).name}", name
    if outcome.code and program_name in ("mistake", "help", "config", "info"):
        kept = ("outputs", "data")
        if abandoned := abandoned_directories(before, after, kept=kept):
            yield "directory left behind", "\n".join(abandoned[:5])


class Drill:
    """The cases of one drill."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        self.bait = make_bait(directory / "bait")
        self.private = mounts_are_private()
        self.seconds = seconds

    def steps(self, case: Case) -> Steps:
        """Run a program in its surroundings."""
        name, program_name = case.name.rsplit(BETWEEN, 1)
        surrounding = surroundings()[name]
        case.title = f"{name}: {' '.join(PROGRAMS[program_name].arguments)}"
        try:
            if surrounding.mounts and not self.private:
                raise Skipped("a private table of mounts needs root")
            seconds = patience(self.seconds)
            command = command_in(name, program_name, root=case.directory, bait=self.bait, seconds=seconds)
            before = snapshot(command.at)
            outcome = yield command
            case.counted.append("succeeded" if outcome.code == 0 else "refused")
            for kind, detail in examine(outcome, program_name, surrounding, before=before):
                case.find(f"{kind} [{_class(name)}]", detail)
        except Skipped as reason:
            case.counted.append(f"skipped, {reason}: {name}")
        finally:
            unmount(case.directory / surrounding.name)


def _class(name: str) -> str:
    """Return the surroundings without their numbers."""
    return re.sub(r"\d+ ?", "", name.partition(",")[0])


def main() -> None:
    parser = options_parser(__doc__, seconds=60)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="run the cases whose names contain a text")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="default: all")
    parser.add_argument("--list", action="store_true", help="list the names of the cases")
    options = parser.parse_args()
    names = [f"{name}{BETWEEN}{program}" for name in surroundings() for program in options.programs]
    names = [name for name in names if any(text in name for text in options.only or [""])]
    if options.list:
        print("\n".join(names))
        return
    sys.exit(drill(parser, options, lambda directory: Drill(directory, seconds=options.seconds).steps, names))


if __name__ == "__main__":
    main()
