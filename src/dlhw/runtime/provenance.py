"""The provenance of a run: versions, machine, command line and git revision."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dlhw
from dlhw.runtime.paths import shell_line


def provenance(device: torch.device, *, own_code: Sequence[Path] = ()) -> dict[str, Any]:
    """Return versions, machine, command line and git revision, for the summary of a run.

    ``own_code`` holds files and folders of the user's own code and configs. The revision of the first repository that
    contains one of them is ``own_git_revision``, which is left out without own code.
    """
    revisions = [_git_revision(path if path.is_dir() else path.parent) for path in own_code]
    own = {"own_git_revision": next(filter(None, revisions), None)} if own_code else {}
    return {
        "command": shell_line(["python", "-m", "dlhw.train", *sys.argv[1:]]),
        "versions": {
            "dlhw": dlhw.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git_revision": _git_revision(Path(__file__).parent),
        **own,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _git_revision(folder: Path) -> str | None:
    """Return the revision of the checkout that contains a folder, with ``+`` if it has changes; None without one."""
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None
