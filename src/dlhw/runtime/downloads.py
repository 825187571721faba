"""Downloads with a timeout and a single error for all kinds of failure."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator

TIMEOUT_SECONDS = 20


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
