"""Faults of the surroundings of a command: file systems, limits, streams, network.

Functions that take the working directory are called before the command starts; the others in the child itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import tempfile
from pathlib import Path

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8  # of umount2(2)

NEW_MOUNTS, NEW_NETWORK = 0x00020000, 0x40000000
PRIVATE, BIND, READ_ONLY, REMOUNT = 0x40000 | 0x4000, 0x1000, 0x1000 | 0x20 | 0x1, 0x20


class Skipped(Exception):
    """The surroundings need something that this machine does not have."""


def mounts_are_private() -> bool:
    """Give this process its own table of mounts, which ends with it. Return False where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    return not libc.unshare(NEW_MOUNTS) and not libc.mount(b"none", b"/", None, PRIVATE, None)


def mount(folder: Path, *, kind: str = "tmpfs", options: str = "", source: Path | None = None, flags: int = 0) -> None:
    """Mount a file system on a folder. Raise Skipped."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.fsencode(folder)
    if libc.mount(os.fsencode(source or "none"), where, kind.encode(), flags, options.encode() or None):
        raise Skipped(f"mounting is not possible here ({os.strerror(ctypes.get_errno())})")


def unmount(folder: Path) -> None:
    """Remove all mounts on a folder and below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in (folder, folder / "outputs", folder):
        while not libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW):
            pass


def full_disk(work: Path, *, left: int, inodes: int | None = None, folder: str = ".") -> None:
    """Move a folder to a file system with only ``left`` bytes, or with only ``inodes`` further files."""
    place, copy = work / folder, work.parent / "copy"
    place.mkdir(exist_ok=True)
    shutil.copytree(place, copy, symlinks=True)
    mount(place, options="size=16m")
    shutil.copytree(copy, place, symlinks=True, dirs_exist_ok=True)
    if inodes is not None:
        used = sum(1 for _ in place.rglob("*")) + 1
        mount(place, options=f"size=16m,nr_inodes={used + inodes}", flags=REMOUNT)
        return
    page = os.sysconf("SC_PAGESIZE")
    with (place / "filled").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(page)):
            pass
    with (place / "filled").open("r+b") as file:
        file.truncate(max(0, file.seek(0, os.SEEK_END) - left // page * page))


def read_only(work: Path, *, folder: str = ".") -> None:
    """Make a folder read-only, also for root."""
    place = work / folder
    place.mkdir(exist_ok=True)
    mount(place, kind="", source=place, flags=BIND)
    mount(place, kind="", source=place, flags=READ_ONLY)


def outputs_is_link(work: Path, *, target: str) -> None:
    """Put a link in place of ``outputs``."""
    (work / "outputs").symlink_to(target)


def limit(kind: int, number: int) -> None:
    """Limit a resource of this process."""
    resource.setrlimit(kind, (number, number))


def limit_file_size(size: int) -> None:
    """Limit the size of files, but not what is written to stdout and stderr."""
    for descriptor in (1, 2):
        output, (ours, theirs) = os.dup(descriptor), os.pipe()
        if not os.fork():
            os.dup2(output, 1)
            os.dup2(ours, 0)
            os.closerange(2, 64)
            while text := os.read(0, 1 << 16):
                os.write(1, text)
            os._exit(0)
        os.dup2(theirs, descriptor)
        for one in (output, ours, theirs):
            os.close(one)
    limit(resource.RLIMIT_FSIZE, size)


def limit_memory(megabytes: int) -> None:
    """Limit the address space to what is used now and ``megabytes`` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGESIZE") + megabytes * 2**20)


def delete_working_directory() -> None:
    """Change to a folder that does not exist any more."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def close_after(line_count: int, descriptor: int) -> None:
    """Connect a stream to a process that passes some lines on and then ends, as ``| head -1`` does."""
    output, (ours, theirs) = os.dup(descriptor), os.pipe()
    if not os.fork():
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as file:
            for _ in range(line_count):
                os.write(output, file.readline())
        os._exit(0)
    os.dup2(theirs, descriptor)
    for one in (output, ours, theirs):
        os.close(one)


def without_network() -> None:
    """Disconnect this process from all networks."""
    ctypes.CDLL(None).unshare(NEW_NETWORK)
