"""Locks and downloads."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import pytest

from dlhw.errors import UsageError
from dlhw.runtime.downloads import TIMEOUT_SECONDS, DownloadFailed, downloading
from dlhw.runtime.files import locked


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file locks of POSIX")
@pytest.mark.parametrize("name", [".", "file"])
def test_lock_is_exclusive_and_is_released_at_the_end_of_the_block(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with contextlib.suppress(RuntimeError), locked(path, wait=False, busy="busy"):
        with pytest.raises(UsageError, match=r"^busy$"), locked(path, wait=False, busy="busy"):
            pytest.fail("two locks on one path")
        raise RuntimeError
    with locked(path, wait=True, busy="busy"):
        pass


@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("no route"), TimeoutError()], ids=repr)
def test_failed_download_has_a_reason_and_restores_the_timeout(error: Exception) -> None:
    before = socket.getdefaulttimeout()

    def fail() -> None:
        assert socket.getdefaulttimeout() == TIMEOUT_SECONDS
        raise error

    with pytest.raises(DownloadFailed, match=r"^(no route|TimeoutError)$"), downloading():
        fail()
    assert socket.getdefaulttimeout() == before
