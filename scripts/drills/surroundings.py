"""Run the commands of dlhw in bad surroundings, and report what should not happen.

    python scripts/drills/surroundings.py
    python scripts/drills/surroundings.py --only "full disk" --programs run sweep

Full and read-only disks, few files, little memory, closed or full streams, no home, odd folders, other encodings. The
file systems are mounted in a namespace of this process, which needs root; without it these surroundings are skipped.
The exit code is 1 if there are findings; ``docs/drills.md`` says what counts as one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from children import CLOSED, Command, Outcome, run
from commands import make_bait
from faults import (
    Skipped,
    close_after,
    delete_working_directory,
    full_disk,
    limit,
    limit_file_size,
    limit_memory,
    mounts_are_private,
    outputs_is_link,
    read_only,
    unmount,
    without_network,
)
from lines import TINY
from verdicts import Finding, Snapshot, abandoned_directories, changed_files, report, snapshot, summary, verdicts

SUCCESS, REFUSED, EITHER = (0,), (1,), (0, 1)
LOST = (0, 1, 120)
"""120 is the exit code of Python if the last output could not be written."""
ACCENTS = "été-日本"


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
    "mistake": Program(("optimizer.lr=abc",)),
}


@dataclass(frozen=True)
class Surrounding:
    """What is unusual about the place where a command runs.

    Args:
        writers: the expected exit codes of programs that write to ``folder``.
        others: those of other programs.
        printing: those of programs that print to stdout, if different.
        folder: the folder with the fault, relative to the working directory; ``.`` is the directory itself.
        setup: called with the working directory before the command starts.
        prepare: called in the child before the program starts.
        shell: what ``prepare`` and the streams are in a shell.
        env: changes of the environment.
        stdin, stdout, stderr: the path of a file to open, or CLOSED; None for the usual.
        cold: needs a new Python process.
        arguments: further arguments for programs that write.
        name: of the working directory.
    """

    writers: Sequence[int] = SUCCESS
    others: Sequence[int] = SUCCESS
    printing: Sequence[int] | None = None
    folder: str = "."
    setup: Callable[[Path], object] | None = None
    prepare: Callable[[], object] | None = None
    shell: str = "{}"
    env: Mapping[str, str | None] = field(default_factory=dict)
    stdin: str | int | None = None
    stdout: str | int | None = None
    stderr: str | int | None = None
    cold: bool = False
    arguments: tuple[str, ...] = ()
    name: str = "work"

    @property
    def mounts(self) -> bool:
        """Whether the setup mounts a file system."""
        return getattr(self.setup, "func", self.setup) in (full_disk, read_only)


@functools.cache
def surroundings() -> dict[str, Surrounding]:
    """Return all surroundings by name."""
    return {"usual": Surrounding(), **_disks(), **_outputs(), **_streams(), **_limits(), **_variables(), **_folders()}


def _disks() -> dict[str, Surrounding]:
    result = {}
    for kilobytes in (0, 4, 8, 32, 64, 128, 256):
        setup = functools.partial(full_disk, left=kilobytes * 1024)
        result[f"full disk, {kilobytes} kB left"] = Surrounding(EITHER, setup=setup)
    for kilobytes in (0, 16, 64):
        setup = functools.partial(full_disk, left=kilobytes * 1024, folder="outputs")
        result[f"full outputs, {kilobytes} kB left"] = Surrounding(EITHER, folder="outputs", setup=setup)
    for inodes in (0, 2, 6):
        setup = functools.partial(full_disk, left=0, inodes=inodes)
        result[f"full disk, {inodes} files left"] = Surrounding(EITHER, setup=setup)
    for size in (0, 200, 2000, 20000):
        prepare = functools.partial(limit_file_size, size)
        shell = f"prlimit --fsize={size} {{}} 2>&1 | cat"
        result[f"files of at most {size} bytes"] = Surrounding(EITHER, prepare=prepare, shell=shell)
    return result


def _outputs() -> dict[str, Surrounding]:
    """Surroundings in which ``outputs`` is not a folder, or no usual one."""
    outputs = functools.partial(Surrounding, folder="outputs")
    result = {
        "read-only folder": Surrounding(REFUSED, setup=read_only),
        "read-only outputs": outputs(REFUSED, setup=functools.partial(read_only, folder="outputs")),
        "outputs on another file system": outputs(setup=functools.partial(full_disk, left=8 * 2**20, folder="outputs")),
        "outputs is a file": outputs(REFUSED, setup=lambda work: (work / "outputs").write_text("a file")),
        "outputs is a link to a folder": outputs(setup=functools.partial(outputs_is_link, target="empty")),
    }
    for target in ("/not/mounted", "outputs", "/dev/null", "/proc"):
        setup = functools.partial(outputs_is_link, target=target)
        result[f"outputs is a link to {target}"] = outputs(REFUSED, setup=setup)
    return result


def _streams() -> dict[str, Surrounding]:
    result = {
        "closed stdin": Surrounding(stdin=CLOSED, shell="{} <&-"),
        "closed stdout": Surrounding(printing=EITHER, stdout=CLOSED, shell="{} >&-"),
        "closed stderr": Surrounding(stderr=CLOSED, shell="{} 2>&-"),
        "all streams closed": Surrounding(
            printing=EITHER, stdin=CLOSED, stdout=CLOSED, stderr=CLOSED, shell="{} <&- >&- 2>&-"
        ),
        "full stdout": Surrounding(printing=REFUSED, stdout="/dev/full", shell="{} >/dev/full"),
        "full stderr": Surrounding(LOST, LOST, stderr="/dev/full", shell="{} 2>/dev/full"),
        "full stdout and stderr": Surrounding(
            LOST, LOST, printing=LOST, stdout="/dev/full", stderr="/dev/full", shell="{} >/dev/full 2>&1"
        ),
    }
    for name in ("closed stdin", "closed stdout", "closed stderr"):
        result[f"{name}, new process"] = replace(result[name], cold=True)
    for count in (0, 1):
        prepare = functools.partial(close_after, count, 1)
        result[f"stdout closed after {count} lines"] = Surrounding(
            printing=EITHER, prepare=prepare, shell=f"{{}} | head -{count}"
        )
        prepare = functools.partial(close_after, count, 2)
        result[f"stderr closed after {count} lines"] = Surrounding(
            LOST, LOST, prepare=prepare, shell=f"{{}} 2>&1 >/dev/null | head -{count}"
        )
    return result


def _limits() -> dict[str, Surrounding]:
    result = {}
    for count in (8, 16, 32, 64):
        prepare = functools.partial(limit, resource.RLIMIT_NOFILE, count)
        result[f"{count} open files"] = Surrounding(EITHER, EITHER, prepare=prepare, shell=f"(ulimit -n {count}; {{}})")
    for megabytes in (4, 16, 64, 256):
        prepare = functools.partial(limit_memory, megabytes)
        shell = "(ulimit -v ...; {})"
        result[f"{megabytes} MB of memory left"] = Surrounding(EITHER, EITHER, prepare=prepare, shell=shell)
    for mask in (0o777, 0o077, 0o222):
        shell = f"(umask {mask:03o}; {{}})"
        result[f"umask {mask:03o}"] = Surrounding(EITHER, prepare=functools.partial(os.umask, mask), shell=shell)
    network = functools.partial(Surrounding, prepare=without_network, shell="unshare -n {}")
    result["no network"] = network()
    result["no network, but a download"] = network(REFUSED, arguments=("dataset=mnist",), folder="outputs")
    return result


def _variables() -> dict[str, Surrounding]:
    result = {}
    for value in (None, "/not/there", "/proc", "", "/dev/null"):
        env = {"HOME": value, "MPLCONFIGDIR": None, "XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None}
        result["no HOME" if value is None else f"HOME={value!r}"] = Surrounding(env=env, cold=True)
    for value in ("/proc", "/not/there", f"/tmp/{'x/' * 2500}", ""):
        result[f"TMPDIR={value[:20]!r}"] = Surrounding(env={"TMPDIR": value})
    for value in ("", "/dev/null", "/not/there", "~/x", "\x1b[31m", "a,b", "${x}"):
        result[f"DLHW_DATA={value!r}"] = Surrounding(EITHER, EITHER, env={"DLHW_DATA": value})
    texts = {"COLUMNS": "1", "TERM": "dumb", "LINES": "0", "FORCE_COLOR": "1", "PYTHONWARNINGS": "error"}
    result |= {f"{name}={value}": Surrounding(env={name: value}) for name, value in texts.items()}
    result["MPLBACKEND=nope"] = Surrounding(EITHER, EITHER, env={"MPLBACKEND": "nope"}, cold=True)
    encodings: dict[str, dict[str, str | None]] = {
        "LANG=C": {"LANG": "C", "LC_ALL": None},
        "LC_ALL=C": {"LC_ALL": "C"},
        "LC_ALL=POSIX without UTF-8 mode": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
        "PYTHONIOENCODING=latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    }
    for name, env in encodings.items():
        arguments = (f"output_dir={ACCENTS}",)  # which no program can read without UTF-8 mode
        result[name] = Surrounding(EITHER, EITHER, env=env, cold=True, arguments=arguments)
    return result


def _folders() -> dict[str, Surrounding]:
    names = ("a b", "a'b", 'a"b', "a,b=c", "${x}", ACCENTS, "a\nb", "-x", "\x1b[31m", "x" * 200, "%d", "[a]", "*", "~")
    result = {f"working directory {name[:20]!r}": Surrounding(name=name) for name in names}
    shell = "mkdir gone; cd gone; rmdir ../gone; {}"
    deleted = Surrounding(REFUSED, EITHER, printing=EITHER, prepare=delete_working_directory, shell=shell)
    return {
        **result,
        "deleted working directory": deleted,
        "deleted working directory, new process": replace(deleted, cold=True),
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


def case(name: str, program_name: str, *, root: Path, bait: Path, seconds: float) -> Command:
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
        name=f"{name}/{program_name}",
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
    if outcome.code and program_name in ("mistake", "help", "config"):
        kept = ("outputs", "data")
        if abandoned := abandoned_directories(before, after, kept=kept):
            yield "directory left behind", "\n".join(abandoned[:5])


def drill(
    names: Iterable[str], programs: Sequence[str], *, seconds: float
) -> tuple[dict[str, int], list[Finding], list[str]]:
    """Run the programs in the surroundings. Return counts, findings and what was skipped with the reason."""
    counts = {"commands": 0, "succeeded": 0, "refused": 0}
    findings: list[Finding] = []
    skipped: list[str] = []
    private = mounts_are_private()
    with tempfile.TemporaryDirectory(prefix="drills-") as directory:
        bait = make_bait(Path(directory, "bait"))
        for name in names:
            surrounding, root = surroundings()[name], Path(directory, "case")
            for program_name in programs:
                root.mkdir()
                try:
                    if surrounding.mounts and not private:
                        raise Skipped("a private table of mounts needs root")
                    command = case(name, program_name, root=root, bait=bait, seconds=seconds)
                    before = snapshot(command.at)
                    outcome = run(command)
                    problems = list(examine(outcome, program_name, surrounding, before=before))
                except Skipped as reason:
                    skipped.append(f"{name}, {program_name}: {reason}")
                    continue
                finally:
                    unmount(root / surrounding.name)
                    shutil.rmtree(root)
                counts["commands"] += 1
                counts["succeeded" if outcome.code == 0 else "refused"] += 1
                repeat = f'python scripts/drills/surroundings.py --only "{name}" --programs {program_name}'
                line = command.text().partition(" && ")[2]
                for kind, detail in problems:
                    print(f"{kind} [{name}]\n    {line}", file=sys.stderr)
                    findings.append(Finding(f"{kind} [{_class(name)}]", repeat, line, detail))
            print(f"{name}: {summary(counts, findings)}", file=sys.stderr, flush=True)
    return counts, findings, skipped


def _class(name: str) -> str:
    """Return the surroundings without their numbers."""
    return re.sub(r"\d+ ?", "", name.partition(",")[0])


def main() -> None:
    names = list(surroundings())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="surroundings that contain a text")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seconds", type=float, default=60, help="a command that runs longer hangs (default: 60)")
    parser.add_argument("--list", action="store_true", help="list the surroundings")
    options = parser.parse_args()
    chosen = [name for name in names if any(text in name for text in options.only)]
    if options.list:
        print("\n".join(chosen))
        return
    began = time.monotonic()
    counts, findings, skipped = drill(chosen, options.programs, seconds=options.seconds)
    for line in [*skipped, "clock jumps: they would affect the whole machine"]:
        print(f"skipped: {line}")
    if findings:
        print(report(findings))
    print(f"{summary(counts, findings)}; {time.monotonic() - began:.0f} s")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
