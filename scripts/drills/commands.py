"""Run thousands of generated command lines, most of them nearly valid, and report what should not happen.

    python scripts/drills/commands.py --count 5000 --seed 0
    python scripts/drills/commands.py --seed 0 --only 17 --verbose   repeat one of them

Every line runs in a forked child, in a new directory that contains finished runs (``bait``), pictures (``shots``) and,
for some lines, the person's own experiment files (``mine``) and code (``mycode.py``). ``docs/drills.md`` lists the
findings.
"""

from __future__ import annotations

import math
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import lines
from cases import Case, Steps, drill, options_parser
from children import run
from command_line import Command, Outcome
from lines import TINY, Line
from verdicts import Snapshot, abandoned_directories, changed_files, patience, snapshot, verdicts

RUN = ("dataset=digits", "model.hidden=[4]", *TINY)
PICTURES = ("dataset.root=shots", "dataset.resize=8", "dataset.crop=8", "dataset.cache_dir=cache")
CNN = ("model=cnn", "model.channels=[2]", "model.kernel=3")
BAIT = (
    (*RUN, "hydra.run.dir=bait/run"),
    ("-m", *RUN, "seed=0,1", "hydra.sweep.dir=bait/sweep"),
    ("dataset=image_folder", *PICTURES, *CNN, *TINY, "hydra.run.dir=bait/pictures"),
)
PATH_KEYS = ("output_dir", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "data_dir", "dataset.cache_dir")
"""Keys that name folders, in which a command may then write."""
PATHS = (*PATH_KEYS, "start", "init.run")
"""Keys whose values are paths."""
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"), "http://127.0.0.1:9")
MEMORY = 32 * 2**30
"""Bytes of address space for a child, so that a number that is too large cannot fill the memory of the machine."""


def make_bait(folder: Path) -> Path:
    """Create the working directory that is copied for every line: finished runs, a sweep, pictures and odd files."""
    from PIL import Image

    (folder / "empty").mkdir(parents=True)
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nname: own\n")
    (folder / "own.yaml").write_text("name: own\n")
    (folder / "mycode.py").write_text("")
    draw = Random(0)
    for kind in ("a", "b"):
        (folder / "shots" / kind).mkdir(parents=True)
        for number in range(8):
            pixels = bytes(draw.randrange(256) for _ in range(8 * 8 * 3))
            Image.frombytes("RGB", (8, 8), pixels).save(folder / "shots" / kind / f"{number}.png")
    for arguments in BAIT:
        outcome = run(Command(arguments, folder, env={"PYTHONDONTWRITEBYTECODE": "1"}))
        assert outcome.code == 0, f"{outcome.command.text()}\n{outcome.err}"
    (folder / "bait" / "dangling").symlink_to("/not/mounted")
    return folder


def line_of(draw: Random) -> Line:
    """Draw a command line that can be run safely."""
    line = lines.generate(draw)
    # "/" would be written to, and a null character cannot be passed to a program
    words = (re.sub(r"=(['\"]?)/+\1$", "=/proc", word).replace("\0", "") for word in line.arguments)
    return Line(tuple(words), line.module, line.files)


def command_of(line: Line, *, folder: Path, bait: Path, seconds: float) -> Command:
    """Create the folder of a line, and return its command."""
    work = folder / "work"
    shutil.copytree(bait, work, symlinks=True)
    for file, text in line.files.items():
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        (work / file).write_text(text)
    (folder / "home").mkdir()
    (folder / "tmp").mkdir()
    env = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **NO_NETWORK}
    return Command(line.arguments, work, line.module, env=env, seconds=seconds, prepare=_limit_memory)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def examine(outcome: Outcome, *, before: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of everything that is wrong with the outcome of a line and its files."""
    words, folder = outcome.argv, outcome.command.at.parent
    verbose = any("verbose" in word for word in words)
    yield from verdicts(outcome, sweep=_is_sweep(outcome), verbose=verbose)
    after = snapshot(folder)
    if changed := [name for name in changed_files(before, after) if not _may_change(name, outcome)]:
        place = re.sub(r"/(seed=\d)/", "/JOB/", changed[0])
        yield f"changed {place}{' with exit code 0' if outcome.code == 0 else ''}", "\n".join(changed[:10])
    if outcome.timed_out or outcome.code < 0:
        return
    if abandoned := abandoned_directories(before, after, kept=("work/outputs", "work/data")):
        yield f"directory left behind, exit code {outcome.code}", "\n".join(abandoned[:5]) + "\n" + outcome.err[-300:]
    if strange := [name for name in after if name not in before and not _may_create(name, outcome)]:
        yield f"created {re.sub(r'[0-9a-f_-]{6,}', '*', strange[0])[:60]}", "\n".join(strange[:5])
    if outcome.code == 0 and outcome.command.module == "dlhw.train":
        yield from _ignored_overrides(outcome, after)


def _is_sweep(outcome: Outcome) -> bool:
    words = " ".join(outcome.argv)
    return any(text in words for text in ("-m", "multirun", "MULTIRUN", "bait/sweep")) or any(
        f"experiment={name}" in words for name in lines.GRID_EXPERIMENTS
    )


def _may_change(name: str, outcome: Outcome) -> bool:
    """Return whether a command that names a run or sweep may change this file of it."""
    path = name.removeprefix("work/")
    for word in outcome.argv:
        named = word.partition("=")[2].strip("'\"./") if "=" in word else word.strip("./")
        if not named or not path.startswith(f"{named}/"):
            continue
        if outcome.command.module == "dlhw.compare" or word.startswith("hydra.sweep.dir="):
            return not re.search(r"seed=\d/", path) and path.startswith("bait/sweep/")
        if word.startswith("resume="):
            return outcome.code == 0
    return False


def _may_create(name: str, outcome: Outcome) -> bool:
    """Return whether a new file or folder is where the program writes, or in a place that the line names."""
    top, _, rest = name.partition("/")
    named = [word.partition("=")[2] if "=" in word else word for word in outcome.argv]
    if top == "home":
        return any("~" in text or "HOME" in text for text in named)
    if top == "tmp" and rest.startswith("torchinductor"):
        return True
    if top != "work":
        return any("../" in text or text.strip("'\"") == ".." for text in named)
    return rest == "bait" or _may_create_in_work(rest.partition("/")[0], outcome, named)


def _may_create_in_work(first: str, outcome: Outcome, named: Sequence[str]) -> bool:
    """Return whether a command may create this entry of the working directory; ``named`` are its values."""
    keys = [word for word in outcome.argv if word.lstrip("+").partition("=")[0] in PATH_KEYS]
    if outcome.command.module != "dlhw.train":
        keys = list(named)
    literally = first != "~" and any(word.partition("=")[2].strip("'\"").partition("/")[0] == first for word in keys)
    if first in ("outputs", "data") or literally:
        return True
    if first.startswith(("~", "$", "-", "'", '"')) or not first.isprintable():
        return False
    if first == "bait":
        return any("bait" in word for word in outcome.argv)
    return any(first in word or "${" in word or "(" in word or word.endswith("=.") for word in keys)


def _ignored_overrides(outcome: Outcome, after: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield the overrides whose values are not in the configs of the runs that the line finished."""
    begun = {path.rpartition("/")[0] for path in after if path.endswith("/summary.json")}
    folder = outcome.command.at.parent
    runs = sorted(path for path in begun if not path.startswith("work/bait/") and f"{path}/config.yaml" in after)
    values = _given_values(outcome.argv, outcome.command.at)
    if not runs or not values:
        return
    configs = [_read_config(folder / run / "config.yaml") for run in runs]
    if not all(config["choices"] for config in configs):  # without Hydra's own files
        values = {key: texts for key, texts in values.items() if key not in lines.groups()}
    for key, texts in values.items():
        found = {_as_text(config, key, outcome.command.at) for config in configs}
        if found != texts:
            kind = "choice" if key in lines.groups() else "key"
            yield f"ignored {kind}: {key}", f"expected {sorted(texts)}, the configs have {sorted(found)}"
    if len(runs) == math.prod(map(len, values.values())):
        return
    expected, jobs = set(product(*map(sorted, values.values()))), len(runs)
    found_rows = {tuple(_as_text(config, key, outcome.command.at) for key in values) for config in configs}
    if expected != found_rows:
        yield "jobs are missing", f"{jobs} of {len(expected)} runs"


def _given_values(words: Sequence[str], at: Path) -> dict[str, set[str]]:
    """Return the values that overrides give to keys and groups, the last one for each; without interpolations."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values: dict[str, set[str]] = {}
    if any(word.startswith("resume=") for word in words):
        return values
    parser = OverridesParser.create()
    for word in words:
        key, equals, text = word.lstrip("+").partition("=")
        if not equals or word.startswith(("-", "~")) or re.search(r"\$|\?\?\?|~|@|glob|tag\(|interval", word):
            continue
        if key.split(".")[0] in ("hydra", "experiment") or key.startswith("hydra/") or text in ("", "''", '""'):
            continue
        if key in PATHS:
            values[key] = {os.path.normpath(at / _text(text))}
            continue
        try:
            override = parser.parse_override(word)
            single_values = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
        except (HydraException, ValueError, TypeError):
            continue
        if single_values is None:
            values[key] = {_text(override.value())}
        else:
            values[key] = {_text(parser.parse_override(f"{key}={one}").value()) for one in single_values}
    return values


def _read_config(path: Path) -> Any:
    import yaml

    config = yaml.safe_load(path.read_text())
    hydra = path.parent / ".hydra" / "hydra.yaml"
    settings = yaml.safe_load(hydra.read_text()) if hydra.exists() else {}
    choices = settings.get("hydra", {}).get("runtime", {}).get("choices", {})
    return {"config": config, "choices": choices}


def _as_text(config: Any, key: str, at: Path) -> str:
    """Return the value of a key, or the option of a group, in a run's config."""
    if key in lines.groups():
        return _text(config["choices"].get(key, "no choice"))
    node = config["config"]
    for name in key.split("."):
        if isinstance(node, dict):
            node = node.get(name, node.get(int(name)) if name.isdecimal() else "no such key")
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return "no such key"
    return os.path.normpath(at / _text(node)) if key in PATHS else _text(node)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{key}:{_text(entry)}" for key, entry in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return re.sub(r"^(['\"])(.*)\1$", r"\2", str(value))
    return f"{number:.12g}"


def text_of(line: Line, *, longest: int = 400) -> str:
    """Return a line as a person would type it."""
    words = [shlex.quote(word) if word.isprintable() else f"${word!r}" for word in line.arguments]
    text = " ".join(["python", "-m", line.module, *words])
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


class Drill:
    """The cases of one drill."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        self.directory = directory
        self.bait = make_bait(directory / "bait")
        self.seconds = seconds
        self.known = self.names()
        self.climbing = False

    def names(self) -> set[str]:
        """Return what is in the directory of the drill and beside those of the cases."""
        folders = [folder for folder in (self.directory, self.directory / "cases") if folder.exists()]
        names = {path.name for folder in folders for path in folder.iterdir()}
        return {name for name in names if not name.isdecimal() and name != "cases"}

    def steps(self, case: Case) -> Steps:
        """Run the command line."""
        line = line_of(case.draw)
        case.title = text_of(line)
        command = command_of(line, folder=case.directory, bait=self.bait, seconds=patience(self.seconds))
        before = snapshot(case.directory)
        self.climbing = self.climbing or any(".." in word for word in command.arguments)
        outcome = yield command
        case.counted.append("succeeded" if outcome.code == 0 else "refused")
        case.findings += examine(outcome, before=before)
        if beside := self.names() - self.known:
            self.known |= beside
            if not self.climbing:  # else it may be the folder of a line that runs at the same time
                case.find("created a folder outside of its own", " ".join(sorted(beside)))


def main() -> None:
    parser = options_parser(__doc__, count=500, seconds=60)
    options = parser.parse_args()
    sys.exit(drill(parser, options, lambda directory: Drill(directory, seconds=options.seconds).steps))


if __name__ == "__main__":
    main()
