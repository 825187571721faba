"""The command ``dlhw``: a verb with its arguments, or the arguments of ``dlhw train``."""

from __future__ import annotations

import importlib
import sys

import dlhw
from dlhw.cli.verbs import VERBS, module_of
from dlhw.runtime import signals


def main() -> None:
    """Run the command line, which is in ``sys.argv``."""
    signals.install()  # before the imports, which take a second
    if "--version" in sys.argv[1:]:
        print(f"dlhw {dlhw.__version__}")
        return
    verb = sys.argv[1] if sys.argv[1:2] and sys.argv[1] in VERBS else None
    if verb is not None:
        del sys.argv[1]
    importlib.import_module(module_of(verb or "train")).main()


if __name__ == "__main__":
    main()
