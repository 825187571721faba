"""Locks and downloads."""

from __future__ import annotations

import contextlib
import logging
import socket
from pathlib import Path

import pytest

from dlhw.errors import UsageError
from dlhw.runtime.downloads import TIMEOUT_SECONDS, DownloadFailed, downloading
from dlhw.runtime.files import is_locked, locked
from support.processes import Process


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


@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("no route"), TimeoutError()], ids=repr)
def test_failed_download_has_a_reason_and_restores_the_timeout(error: Exception) -> None:
    before = socket.getdefaulttimeout()

    def fail() -> None:
        assert socket.getdefaulttimeout() == TIMEOUT_SECONDS
        raise error

    with pytest.raises(DownloadFailed, match=r"^(no route|TimeoutError)$"), downloading():
        fail()
    assert socket.getdefaulttimeout() == before
