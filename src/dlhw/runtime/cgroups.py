"""The limits of the cgroups that this process belongs to: processor time and memory, on Linux.

Containers, Slurm and systemd limit processes by cgroups. A limit holds for a group and everything below it, so the
directories from the process's own group up to the root are read. In a container, the root of the mounted files is
often the container's own group, and the path in ``/proc/self/cgroup`` may not exist. Versions 1 and 2 of the files
differ in names and in how "no limit" is written. Without cgroups there is no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the processor time that the process may use, in cores, such as 1.5; None without a limit."""
    quotas = []
    for directory in _directories(root, "cpu"):
        words = _words(directory / "cpu.max")
        if len(words) != 2:
            words = _words(directory / "cpu.cfs_quota_us") + _words(directory / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):  # no limit is max or -1
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def free_memory(root: Path = _ROOT) -> int | None:
    """Return how many more bytes the process may allocate; None without a limit."""
    free = []
    for directory in _directories(root, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            words = _words(directory / limit) + _words(directory / used)
            if len(words) == 2 and all(word.isdecimal() for word in words):
                free.append(int(words[0]) - int(words[1]))
    return min(free, default=None)


def _directories(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the process's groups for a controller, in both versions, from the root down."""
    mounted = root / "sys/fs/cgroup"
    yield from (mounted, mounted / controller)
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        top = mounted if number == "0" else mounted / controller
        if number == "0" or controller in controllers.split(","):
            parts = PurePosixPath(path).parts[1:]
            yield from (top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1) if ".." not in parts)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # not Linux, another version, or not readable
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()
