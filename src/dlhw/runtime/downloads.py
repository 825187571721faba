"""Downloads with a timeout and a single error for all kinds of failure."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

TIMEOUT_SECONDS = 20
SECONDS_TO_CONNECT = 3.0


class DownloadFailed(Exception):
    """A download failed; the message is the reason, in one line."""


@contextlib.contextmanager
def downloading() -> Iterator[None]:
    """Give sockets a timeout, and raise DownloadFailed for errors of the network, the server or the disk.

    torch and torchvision set no timeout, so behind a firewall a download may wait forever.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DownloadFailed(" ".join(str(error).split()) or type(error).__name__) from error
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def removing_empty(folder: Path) -> Iterator[None]:
    """After an error, remove the empty folders in a folder; also the folder and its parents if they are new."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        inside = [Path(where) for where, _, _ in os.walk(folder, topdown=False)]
        for path in dict.fromkeys([*inside[:-1], *created]):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        raise


def require_answer(url: str) -> None:
    """Raise OSError if the server of an ``http`` or ``https`` URL does not accept connections within seconds.

    A server that is reached through a proxy is not asked.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    if parts.scheme in ("http", "https"):
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT).close()
