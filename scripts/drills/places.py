"""The surroundings of ``surroundings.py``: disks, streams, limits, environment variables, working directories."""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from faults import (
    close_after,
    delete_working_directory,
    full_disk,
    limit,
    limit_file_size,
    limit_memory,
    outputs_is_link,
    read_only,
    without_network,
)
from forked import CLOSED

SUCCESS, REFUSED, EITHER = (0,), (1,), (0, 1)
LOST = (0, 1, 120)
"""120 is the exit code of Python if the last output could not be written."""
ACCENTS = "été-日本"


@dataclass(frozen=True)
class Surrounding:
    """The place where a command runs, with what is unusual about it.

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
    """Return surroundings in which ``outputs`` is read-only, mounted, a link or a file."""
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
    names = ("a b", "a'b", 'a"b', "a,b=c", ACCENTS, "a\nb", "-x", "\x1b[31m", "x" * 200, "%d", "[a]", "*", "~")
    result = {f"working directory {name[:20]!r}": Surrounding(name=name) for name in names}
    shell = "mkdir gone; cd gone; rmdir ../gone; {}"
    deleted = Surrounding(REFUSED, EITHER, printing=EITHER, prepare=delete_working_directory, shell=shell)
    return {
        **result,
        "working directory '${x}'": Surrounding(EITHER, EITHER, name="${x}"),  # a config cannot contain its path
        "deleted working directory": deleted,
        "deleted working directory, new process": replace(deleted, cold=True),
    }
