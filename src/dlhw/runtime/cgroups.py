"""The limits of the cgroups that this process belongs to: processor time and memory, on Linux.

Containers, Slurm and systemd limit processes by cgroups. A limit holds for a group and everything below it, so the
directories from the process's own group up to the root are read. In a container, the root of the mounted files is
often the container's own group, and the path in ``/proc/self/cgroup`` may not exist. Versions 1 and 2 of the files
differ in names and in how "no limit" is written. Without cgroups there is no limit.
"""

from __future__ import annotations

import os
import re
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
    """Return how many more bytes the process may allocate; None without a limit.

    Files that were read count as used memory of a group, but the kernel drops those that are not in use when it needs
    their memory, so they are free.
    """
    free = []
    for directory in _directories(root, "memory"):
        for limit, used, files in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            words = _words(directory / limit) + _words(directory / used)
            if len(words) == 2 and all(word.isdecimal() for word in words):
                free.append(int(words[0]) - int(words[1]) + _statistic(directory / "memory.stat", files))
    return min(free, default=None)


def _directories(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the process's groups for a controller, in both versions, from the root down."""
    mounted = root / "sys/fs/cgroup"
    yield from (mounted, mounted / controller)
    for line in _lines(root / "proc/self/cgroup"):
        match = re.fullmatch(r"(\d+):([^:]*):/(.*)", line)
        if match is None or (match[1] != "0" and controller not in match[2].split(",")):
            continue
        parts = PurePosixPath(match[3]).parts
        for top in [mounted] if match[1] == "0" else [mounted / controller, mounted / match[2]]:
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1) if ".." not in parts)


def _lines(file: Path) -> list[str]:
    try:
        return os.fsdecode(file.read_bytes()).split("\n")
    except OSError:  # not Linux, another version, or not readable
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _statistic(file: Path, name: str) -> int:
    """Return the number after a name in ``memory.stat``; 0 if it is not there."""
    return next((int(line.split()[1]) for line in _lines(file) if re.fullmatch(rf"{name} \d+", line)), 0)
