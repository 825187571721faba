"""The provenance of a run: versions, machine, command line and git revision."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import dlhw


def provenance(device: torch.device) -> dict[str, Any]:
    """Return versions, machine, command line and git revision, for the summary of a run."""
    return {
        "command": shlex.join(["python", "-m", "dlhw.train", *sys.argv[1:]]),
        "versions": {
            "dlhw": dlhw.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git_revision": _git_revision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _git_revision() -> str | None:
    """Return the revision of the checkout of this package, with ``+`` if it has changes; None without a checkout."""
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None
