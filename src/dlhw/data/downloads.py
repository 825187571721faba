"""Download the files of published datasets with torchvision. Only complete files get their final names."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dlhw.runtime.downloads import downloading, removing_empty

log = logging.getLogger(__name__)


def fetch(dataset: str, inside: Path, names: Sequence[str], *, to: Path) -> None:
    """Download with a class of ``torchvision.datasets``, then move files from the folder ``inside`` its root.

    Raise DownloadFailed.
    """
    import torchvision  # takes seconds to import

    log.info("downloading %s to %s", dataset, to)
    with downloading(), removing_empty(to):
        to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to, prefix=".download-") as fresh:
            getattr(torchvision.datasets, dataset)(fresh, download=True)
            for name in names:
                os.replace(Path(fresh) / inside / name, to / name)
