"""Locks, files that another program has opened, and downloads."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
from pathlib import Path

import pytest

from dlhw.cli.failures import one_line
from dlhw.errors import UsageError
from dlhw.runtime import files
from dlhw.runtime.downloads import TIMEOUT_SECONDS, DownloadFailed, downloading
from dlhw.runtime.files import is_locked, locked, write_atomically
from support.processes import Process

starts_processes = pytest.mark.skipif(sys.platform == "win32", reason="kills processes with signals of POSIX")
HOLDER = """
import sys, time
from pathlib import Path
from dlhw.runtime.files import locked
with locked(Path(sys.argv[1]), wait=False, busy="busy"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_lock_is_exclusive_and_ends_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with contextlib.suppress(RuntimeError), locked(path, wait=False, busy="busy"):
        assert is_locked(path)
        with pytest.raises(UsageError, match=r"^busy$"), locked(path, wait=False, busy="busy"):
            pytest.fail("two locks on one path")
        assert is_locked(path)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert not is_locked(path)
    with locked(path, wait=True, busy="busy"):
        assert is_locked(path)
    assert list(tmp_path.iterdir()) == []


@starts_processes
def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = Process("-c", HOLDER, path, at=tmp_path)
    process.until(lambda: process.out)
    assert is_locked(path)
    process.kill()
    assert path.exists()
    assert not is_locked(path)
    with locked(path, wait=False, busy="busy"):
        assert is_locked(path)
    assert not path.exists()


@starts_processes
def test_waiting_for_a_lock_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    caplog.set_level(logging.INFO)
    process = Process("-c", HOLDER, path, at=tmp_path)
    process.until(lambda: process.out)
    handler = logging.Handler()
    handler.emit = lambda record: process.kill()  # type: ignore[method-assign]
    logging.getLogger("dlhw").addHandler(handler)
    try:
        with locked(path, wait=True, busy="waiting for it"):
            assert caplog.messages == ["waiting for it"]
    finally:
        logging.getLogger("dlhw").removeHandler(handler)


def test_asking_for_a_lock_creates_no_file(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["folder", "missing/lock"])
def test_lock_that_cannot_be_created_is_an_error_with_its_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error, locked(tmp_path / name, wait=True, busy="busy"):  # noqa: PT011
        pytest.fail("locked")
    assert Path(error.value.filename) == (tmp_path / name if name == "folder" else tmp_path / "missing")
    assert (tmp_path / "folder").is_dir()


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system is Windows, which refuses to rename a file once for each path in this list."""
    rename, refused = Path.replace, list[str]()

    def replace(source: Path, target: Path) -> Path:
        if str(target) in refused:
            refused.remove(str(target))
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "_ON_WINDOWS", True)
    return refused


def test_file_that_another_program_has_opened_for_a_moment_is_replaced(refusals: list[str], tmp_path: Path) -> None:
    refusals += [str(tmp_path / "x")] * 3
    write_atomically(tmp_path / "x", b"new")
    assert refusals == []
    assert (tmp_path / "x").read_bytes() == b"new"


def test_file_that_stays_open_in_another_program_is_an_error(
    refusals: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"old")
    refusals += [str(tmp_path / "x")] * 3
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(PermissionError) as error:
        write_atomically(tmp_path / "x", b"new")
    assert one_line(error.value) == (
        f"{tmp_path / 'x'}: cannot be changed, because it is read-only or open in another program; close it there"
    )
    assert (tmp_path / "x").read_bytes() == b"old"


def test_refused_change_is_not_repeated_on_other_systems(
    refusals: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_ON_WINDOWS", False)
    refusals += [str(tmp_path / "x")] * 2
    with pytest.raises(PermissionError, match="Access is denied"):
        write_atomically(tmp_path / "x", b"new")
    assert len(refusals) == 1


@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("no route"), TimeoutError()], ids=repr)
def test_failed_download_has_a_reason_and_restores_the_timeout(error: Exception) -> None:
    before = socket.getdefaulttimeout()

    def fail() -> None:
        assert socket.getdefaulttimeout() == TIMEOUT_SECONDS
        raise error

    with pytest.raises(DownloadFailed, match=r"^(no route|TimeoutError)$"), downloading():
        fail()
    assert socket.getdefaulttimeout() == before
