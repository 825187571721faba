"""Import the drills, which are scripts, and run a few of their cases in a process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from support.processes import Ended, Process

DRILLS = Path(__file__).parents[2] / "scripts" / "drills"
PROGRAM = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
program = sys.argv[2]
sys.argv[:] = sys.argv[2:]
runpy.run_path(program, run_name="__main__")
"""


def drill(name: str) -> Any:
    """Return a module of ``scripts/drills``."""
    if str(DRILLS) not in sys.path:
        sys.path.append(str(DRILLS))
    return importlib.import_module(name)


def run_drill(name: str, *options: str, at: Path) -> Ended:
    """Run ``python scripts/drills/NAME ...`` in a forked process."""
    return Process("-c", PROGRAM, DRILLS, DRILLS / name, *options, at=at).end()
