"""Run thousands of generated command lines, most of them nearly valid, and report what should not happen.

    python scripts/drills/commands.py --count 5000 --seed 0
    python scripts/drills/commands.py --seed 0 --case 17  # repeat one of them, and print its output

Every line runs in a forked child, in a new folder that contains finished runs (``bait``), pictures (``shots``) and, for
some lines, own experiment files (``mine``) and code (``mycode.py``). The exit code is 1 if there are findings;
``docs/drills.md`` says what counts as one.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import lines
from children import Command, Outcome, run, run_all
from lines import TINY, Line
from verdicts import Finding, Snapshot, abandoned_directories, changed_files, report, snapshot, summary, verdicts

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
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"), "http://127.0.0.1:9")
MEMORY = 32 * 2**30
"""Bytes of address space for a child, so that a number that is too large cannot fill the memory of the machine."""


def make_bait(folder: Path) -> Path:
    """Create the working directory that every line gets a copy of: finished runs, a sweep, pictures and odd files."""
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


def line_of(seed: int, number: int) -> Line:
    """Return the command line with this number."""
    line = lines.generate(Random(f"{seed}/{number}"))
    # "/" would be written to, and a null character cannot be passed to a program
    words = (re.sub(r"=(['\"]?)/+\1$", "=/proc", word).replace("\0", "") for word in line.arguments)
    return Line(tuple(words), line.module, line.files)


def command_of(line: Line, *, folder: Path, bait: Path, name: str, seconds: float) -> Command:
    """Create the folder of a line, and return its command."""
    work = folder / "work"
    shutil.copytree(bait, work, symlinks=True)
    for file, text in line.files.items():
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        (work / file).write_text(text)
    (folder / "home").mkdir()
    (folder / "tmp").mkdir()
    env = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **NO_NETWORK}
    return Command(line.arguments, work, line.module, env=env, name=name, seconds=seconds, prepare=_limit_memory)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def examine(outcome: Outcome, *, before: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of everything that is wrong with a line's end, output and files."""
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
    """Return whether a new file or folder is where the program writes, or where the line says."""
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
    literally = first != "~" and any(word.partition("=")[2].partition("/")[0] == first for word in keys)
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
    values = _given_values(outcome.argv)
    if not runs or not values:
        return
    configs = [_read_config(folder / run / "config.yaml") for run in runs]
    if not all(config["choices"] for config in configs):  # without Hydra's own files
        values = {key: texts for key, texts in values.items() if key not in lines.groups()}
    for key, texts in values.items():
        found = {_as_text(config, key).removeprefix(f"{outcome.command.at}/") for config in configs}
        if found != texts:
            kind = "choice" if key in lines.groups() else "key"
            yield f"ignored {kind}: {key}", f"expected {_sorted(texts)}, the configs have {_sorted(found)}"
    if len(runs) == math.prod(map(len, values.values())):
        return
    expected, jobs = set(product(*map(_sorted, values.values()))), len(runs)
    found_rows = {tuple(_as_text(config, key) for key in values) for config in configs}
    if expected != found_rows:
        yield "jobs are missing", f"{jobs} of {len(expected)} runs"


def _given_values(words: Sequence[str]) -> dict[str, set[str]]:
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
        if key in (*PATH_KEYS, "start", "init.run"):
            values[key] = {_text(text)}
            continue
        try:
            override = parser.parse_override(word)
            one_by_one = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
        except (HydraException, ValueError, TypeError):
            continue
        if one_by_one is None:
            values[key] = {_text(override.value())}
        else:
            values[key] = {_text(parser.parse_override(f"{key}={one}").value()) for one in one_by_one}
    return values


def _read_config(path: Path) -> Any:
    import yaml

    config = yaml.safe_load(path.read_text())
    hydra = path.parent / ".hydra" / "hydra.yaml"
    settings = yaml.safe_load(hydra.read_text()) if hydra.exists() else {}
    choices = settings.get("hydra", {}).get("runtime", {}).get("choices", {})
    return {"config": config, "choices": choices}


def _as_text(config: Any, key: str) -> str:
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
    return _text(node)


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


def _sorted(texts: set[str]) -> list[str]:
    return sorted(texts)


def drill(*, count: int, seed: int, jobs: int, seconds: float, start: int = 0) -> tuple[dict[str, int], list[Finding]]:
    """Run command lines, and return how many ended in which way, and the findings."""
    findings: list[Finding] = []
    counts = {"command lines": 0, "succeeded": 0, "refused": 0}
    with tempfile.TemporaryDirectory(prefix="drills-") as directory:
        root = Path(directory)
        bait = make_bait(root / "bait")
        before: dict[str, Snapshot] = {}

        def commands() -> Iterator[Command]:
            for number in range(start, start + count):
                folder = root / str(number)
                line = line_of(seed, number)
                command = command_of(line, folder=folder, bait=bait, name=str(number), seconds=seconds)
                before[command.name] = snapshot(folder)
                yield command

        known, climbing = _names(root), False
        with contextlib.suppress(KeyboardInterrupt):  # what was found so far is reported
            for outcome in run_all(commands(), jobs=jobs):
                number, folder = outcome.command.name, outcome.command.at.parent
                line = Line(outcome.argv, outcome.command.module)
                repeat = f"python scripts/drills/commands.py --seed {seed} --case {number}"
                problems = list(examine(outcome, before=before.pop(number)))
                if beside := {name for name in _names(root) - known if not name.isdecimal()}:
                    known |= beside
                    climbing = climbing or any(".." in word for word in outcome.argv)
                    if not climbing:  # it may be the folder of a line that runs at the same time
                        problems.append(("created a folder outside of its own", " ".join(sorted(beside))))
                for kind, detail in problems:
                    if all(finding.kind != kind for finding in findings):
                        print(f"{kind}\n    {text_of(line)}", file=sys.stderr)
                    findings.append(Finding(kind, repeat, text_of(line), detail))
                counts["command lines"] += 1
                counts["succeeded" if outcome.code == 0 else "refused"] += 1
                shutil.rmtree(folder, ignore_errors=True)
                if not counts["command lines"] % 200:
                    print(summary(counts, findings), file=sys.stderr)
    return counts, findings


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def text_of(line: Line, *, longest: int = 400) -> str:
    """Return a line as a person would type it."""
    words = [shlex.quote(word) if word.isprintable() else f"${word!r}" for word in line.arguments]
    text = " ".join(["python", "-m", line.module, *words])
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


def show_case(seed: int, number: int, *, seconds: float, keep: bool) -> int:
    """Run one line again, print everything about it, and return the number of its findings."""
    root = Path(tempfile.mkdtemp(prefix="drills-"))
    line = line_of(seed, number)
    bait = make_bait(root / "bait")
    command = command_of(line, folder=root / str(number), bait=bait, name=str(number), seconds=seconds)
    before = snapshot(root / str(number))
    outcome = run(command)
    problems = list(examine(outcome, before=before))
    for file, text in line.files.items():
        print(f"--- {file}\n{text}")
    print(command.text() if keep else text_of(line, longest=10_000))
    print(f"exit code {outcome.code}, {outcome.seconds:.1f} s")
    print(f"--- stdout\n{outcome.out[-4000:]}--- stderr\n{outcome.err[-8000:]}---")
    for kind, detail in problems:
        print(f"{kind}\n{detail}")
    if not keep:
        shutil.rmtree(root)
    return len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="number of command lines (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first line")
    parser.add_argument("--jobs", type=int, default=2, help="lines at a time (default: 2)")
    parser.add_argument("--seconds", type=float, default=60, help="a line that runs longer hangs (default: 60)")
    parser.add_argument("--case", type=int, default=None, metavar="NUMBER", help="run this line alone, show its output")
    parser.add_argument("--keep", action="store_true", help="with --case: keep the folder")
    options = parser.parse_args()
    if options.case is not None:
        problems = show_case(options.seed, options.case, seconds=options.seconds, keep=options.keep)
        sys.exit(1 if problems else 0)
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    counts, findings = drill(
        count=options.count, seed=options.seed, jobs=options.jobs, seconds=options.seconds, start=options.start
    )
    if findings:
        print(report(findings))
    print(f"{summary(counts, findings)}; {time.monotonic() - began:.0f} s")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
