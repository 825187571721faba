"""Clear the caches of functions."""

from __future__ import annotations

import sys


def forget() -> None:
    """Clear the caches of all functions of dlhw, as in a new process."""
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "dlhw"]:
        for value in list(vars(module).values()):
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()
