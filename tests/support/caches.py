"""Clear the caches of dlhw."""

from __future__ import annotations

import sys

from dlhw.training import features


def forget() -> None:
    """Clear all caches of dlhw, as in a new process."""
    features.clear_cache()
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "dlhw"]:
        for value in list(vars(module).values()):
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()
