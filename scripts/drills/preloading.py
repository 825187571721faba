"""Import the libraries and dlhw once, in a process that then forks for every command.

A new Python process needs seconds to import torch; a forked one has it already. The tests use this module too.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys

LIBRARIES = (
    "hydra",
    "matplotlib.pyplot",
    "pandas",
    "rich.progress",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch",
    "torchvision.transforms.v2",
)


def import_everything() -> None:
    """Import the libraries and all modules of dlhw."""
    for name in LIBRARIES:
        importlib.import_module(name)
    import dlhw

    for module in pkgutil.walk_packages(dlhw.__path__, "dlhw."):
        with contextlib.suppress(ImportError):  # a module that needs an optional package
            importlib.import_module(module.name)


def unload(name: str) -> None:
    """Remove a module from the imported ones, so that it can run as ``__main__``."""
    package, _, last = name.rpartition(".")
    sys.modules.pop(name, None)
    if package in sys.modules:
        vars(sys.modules[package]).pop(last, None)
