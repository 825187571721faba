"""The packages of dlhw are layers: a module imports only modules of lower layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlhw

SOURCE = Path(dlhw.__file__).parent

LEVELS = (
    {"__main__"},
    {
        *("sweeps", "compare", "predict", "evaluate", "ls", "show", "new", "completion", "find_lr", "export"),
        *("inprocess", "templates"),
    },
    {"train", "reading"},
    {"cli"},
    {"studies", "applying"},
    {"training", "views"},
    {"data", "models", "search", "loggers"},
    {"storage"},
    {"runtime"},
    {"errors", "intervals"},
)
"""The modules and packages of dlhw, from the top level down. Each may import only from lower levels."""


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of the dlhw modules that a file imports.

    ``from dlhw import x`` gives ``dlhw.x`` if that is a module, and ``dlhw`` otherwise.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "dlhw")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            module = node.module or ""
            if module.split(".")[0] == "dlhw":
                for name in node.names:
                    path = SOURCE.parent.joinpath(*module.split("."), name.name)
                    is_module = path.is_dir() or path.with_suffix(".py").is_file()
                    yield f"{module}.{name.name}" if is_module else module


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_modules_import_only_lower_levels(path: Path) -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    package = "__main__" if path.stem == "__main__" else path.relative_to(SOURCE).with_suffix("").parts[0]
    if package == "__init__":  # its functions import what they need when they are called
        return
    modules = imported_modules(ast.parse(path.read_text()))
    others = {module.split(".")[1] for module in modules if "." in module} - {package}
    assert {other for other in others if level[other] <= level[package]} == set()
