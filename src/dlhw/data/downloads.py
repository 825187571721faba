"""Files of published data sets, fetched by torchvision so that nothing half-written gets a real name."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)


class Unavailable(Exception):
    """What was to be downloaded is not to be had; the text is the reason."""


def fetch(dataset: str, inside: Path, names: Sequence[str], *, to: Path) -> None:
    """Let a class of ``torchvision.datasets`` download, then move the files that it left ``inside`` its root.

    Raises Unavailable.
    """
    import torchvision  # takes seconds, and is needed only here

    log.info("downloading %s to %s", dataset, to)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds; torchvision sets none, and a firewall may never answer
    try:
        to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to, prefix=".download-") as fresh:
            getattr(torchvision.datasets, dataset)(fresh, download=True)
            for name in names:
                os.replace(Path(fresh) / inside / name, to / name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise Unavailable("the download failed: " + " ".join(str(error).split())) from error
    finally:
        socket.setdefaulttimeout(timeout)
