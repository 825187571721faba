"""The command that writes a folder with a model, a dataset and an experiment of your own: ``dlhw new NAME``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from dlhw.cli import failures
from dlhw.cli.composition import conf_dir
from dlhw.errors import UsageError
from dlhw.runtime.hints import expected_one_of
from dlhw.runtime.paths import printable, shortened
from dlhw.storage.directories import DEBUG_FOLDER

TEMPLATE = Path(__file__).parent / "templates" / "mine"
"""The folder that is written for the name ``mine``."""
LONGEST = 50


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw new",
        description="Write a folder with a model, a dataset and an experiment of your own, or with a copy of an "
        "experiment of dlhw.",
    )
    parser.add_argument("name", metavar="NAME", help="of the folder and the experiment: letters, digits and _")
    parser.add_argument("--from", dest="source", metavar="EXPERIMENT", help="copy this experiment of dlhw")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder that the command line names. An error ends the program with one line and exit code 1."""
    options = argument_parser().parse_args(arguments)
    with failures.end_program(options.name):
        write(options.name, options.source)
        print(f"{options.name}: written. To train:\n\n    {_command(options.name)}\n")


def write(name: str, source: str | None = None) -> None:
    """Write the folder ``name``: from the template, or with a copy of the experiment ``source`` only.

    Raise UsageError if the name is invalid, the folder exists or there is no such experiment.
    """
    folder = Path(name)
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_]{{0,{LONGEST - 1}}}", name):
        raise UsageError(
            f"{shortened(name)}: expected a name of at most {LONGEST} letters, digits and _ that starts with a letter"
        )
    if yaml.safe_load(name) != name or name == DEBUG_FOLDER:
        raise UsageError(f"{name}: has another meaning in config files; choose another name")
    _require_unused(name)
    files = _from_template(name) if source is None else {f"experiment/{name}.yaml": _copied(source, name)}
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise UsageError(f"{printable(folder)}: exists already; choose another name") from error
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def _require_unused(name: str) -> None:
    """Raise UsageError if a config file of dlhw has this name, because it would be used instead of the new one."""
    used = [f"{group}={name}" for group in ("experiment", "dataset", "model") if _shipped(group, name).exists()]
    if used:
        raise UsageError(f"{name}: dlhw has {' and '.join(used)}; choose another name")


def _from_template(name: str) -> Mapping[str, str]:
    """Return the text of each file by its path in the folder."""
    paths = [path for path in TEMPLATE.rglob("*") if path.suffix in (".md", ".py", ".yaml")]
    return {
        _renamed(path.relative_to(TEMPLATE).as_posix(), name): _renamed(path.read_text(encoding="utf-8"), name)
        for path in sorted(paths)
    }


def _renamed(text: str, name: str) -> str:
    return re.sub(r"(?<![a-z])mine(?![a-z])", name, text)


def _copied(source: str, name: str) -> str:
    """Return the file of a shipped experiment with another name. Raise UsageError if there is no such experiment."""
    valid = [file.stem for file in sorted((conf_dir() / "experiment").glob("*.yaml"))]
    if source not in valid:
        raise UsageError(f"--from {shortened(source)}: no such experiment{expected_one_of(source, valid)}")
    package, *lines = _shipped("experiment", source).read_text(encoding="utf-8").splitlines()
    text = "\n".join([package, f"# Copied from experiment={source}, whose comments follow.", *lines, ""])
    text = re.sub(
        rf"python -m dlhw\.train (.*)\bexperiment={source}\b", rf"dlhw --config-dir {name} \1experiment={name}", text
    )
    return re.sub(r"^name: .*", f"name: {name}", text, flags=re.MULTILINE)


def _shipped(group: str, name: str) -> Path:
    return conf_dir() / group / f"{name}.yaml"


def _command(name: str) -> str:
    return f"dlhw --config-dir {name} experiment={name}"


if __name__ == "__main__":
    main()
