"""Change files that dlhw reads, and look at what it does with them.

    python scripts/drills/files.py --count 2000 --seed 0
    python scripts/drills/files.py --seed 0 --only 137          repeat one case

Every case copies a small corpus (a finished run and an interrupted one, sweeps likewise, a folder of pictures with its
cache, an experiment file, MNIST if it is in the folder ``DLHW_DATA``), changes one file of it (``mutations.py``) and
runs what reads it: ``resume=``, the same command again, ``python -m dlhw.compare``, ``python -m dlhw.predict``,
``dlhw.load_run`` and ``dlhw.load_sweep``, training on the pictures.

A finding is: code of a malicious file that is executed; a result that differs from that of the undisturbed run although
the command succeeds; results that are lost although the command refuses; a command that does not end within ``--limit``
seconds, which are longer on a busy machine; a traceback; an exit code other than 0 and 1; a message that names neither
the file nor its directory.

What no program can notice is no wrong result: a changed number in a CSV, JSON or YAML file that is as valid as before.
A resumed run is compared bit by bit anyway, because its checkpoint has the rows and can identify its config.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cases import (
    Case,
    Steps,
    differences,
    drill,
    fingerprint,
    has_traceback,
    last_lines,
    parser,
    patience,
    repeat_line,
    working_directory,
)
from children import Command, Outcome, run
from corpus import IDX_FILES, MNIST, OWN, PICTURES, RUN, SWEEP, Corpus
from mutations import mutate
from structures import is_plain_edit

MEMORY_BYTES = 6 << 30
"""Address space that a command may use in addition to what it has at its start."""
FILE_BYTES = 1 << 30
RESULTS = ("metrics.csv", "best.pt", "last.pt", "previous.pt", "config.yaml")
"""Files that a command that fails must not lose."""


@dataclass(frozen=True)
class Scenario:
    """A part of the corpus, and what reads it.

    Args:
        weight: how often it is drawn.
        parts: directories of the corpus that each case copies.
        victims: glob patterns of the files that may be changed.
        steps: runs the commands, given the change.
    """

    weight: int
    parts: tuple[str, ...]
    victims: tuple[str, ...]
    steps: Callable[[Drill, Case, Change], Steps]


@dataclass(frozen=True)
class Change:
    """What a case did to which file.

    Args:
        path: of the file.
        plain: whether it is as valid as before.
        marker: exists if a malicious file was executed.
        job_finished: whether the run that the file belongs to was finished, so that nothing reads the file any more.
        others: the other results, by path: the content of metrics.csv, nothing of the rest.
    """

    path: Path
    what: str
    plain: bool
    marker: Path
    job_finished: bool
    others: Mapping[Path, bytes]


class Drill:
    """The cases of one drill."""

    def __init__(self, corpus: Corpus, *, names: Sequence[str], seconds: float) -> None:
        self.corpus = corpus
        self.seconds = seconds
        self.names = [name for name in names if name != "idx" or corpus.has_idx]

    def steps(self, case: Case) -> Steps:
        """Copy the corpus, change a file, and run what reads it."""
        name = case.draw.choices(self.names, [SCENARIOS[name].weight for name in self.names])[0]
        scenario = SCENARIOS[name]
        for part in scenario.parts:
            shutil.copytree(self.corpus[part], case.directory / part, symlinks=True)
        case.counted.append(f"in {name}")
        if name == "pictures":
            shutil.copy2(self.corpus.root / "groups.csv", case.directory)
            yield self.command(case, *PICTURES, "hydra.run.dir=before")
        victims = sorted(
            {path for pattern in scenario.victims for path in case.directory.glob(pattern) if path.is_file()}
        )
        change = self.change(case, case.draw.choice(victims))
        case.title = f"{name}: {change.path.relative_to(case.directory)}: {change.what}"
        yield from scenario.steps(self, case, change)
        if change.marker.exists():
            case.find("code executed", str(change.path))

    def change(self, case: Case, path: Path) -> Change:
        """Change a file in a random way."""
        marker = case.directory / "executed"
        if path.is_symlink():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        before = path.read_bytes()
        pictures = path.suffix in (".png", ".bmp", ".jpg", ".pictures")
        what = mutate(path, case.draw, donors=self.donors(path, case), marker=marker, keep_times=pictures)
        kind = path.suffix or "-".join(path.name.split("-")[-2:])
        case.counted.append(f"of {kind if pictures or kind in ('.pt', '.log') else path.name[:6] + kind}")
        finished = b"finished" in _content(path.parent / "summary.json")
        others = {
            one: one.read_bytes() if one.name == "metrics.csv" else b""
            for one in case.directory.rglob("*")
            if one.name in RESULTS and one != path and one.is_file()
        }
        return Change(path, what, is_plain_edit(before, path), marker, finished, others)

    def donors(self, path: Path, case: Case) -> list[Path]:
        """Return other files of the same kind."""
        found: set[Path] = {one for one in case.directory.rglob(f"*{path.suffix}") if path.suffix and one.is_file()}
        if path.suffix == ".pt" or path.name in ("config.yaml", "metrics.csv", "timing.csv", "summary.json"):
            found = {one for one in found if path.suffix == ".pt" or one.name == path.name}
            for name in ("run", "other", "wider"):
                pattern = "*.pt" if path.suffix == ".pt" else path.name
                found |= set(self.corpus[name].glob(pattern))
        return sorted(found - {path})

    def command(self, case: Case, *arguments: str, module: str = "dlhw.train", **options: Any) -> Command:
        """Return a command in the case's directory with limited memory."""
        return Command(
            arguments, at=case.directory, module=module, prepare=limit_memory, seconds=patience(self.seconds), **options
        )

    def check(self, case: Case, outcome: Outcome, change: Change, *, names: Sequence[str] = ()) -> bool:
        """Find what a command must never do. Return whether it succeeded."""
        text = outcome.out + outcome.err
        if outcome.timed_out:
            case.find("hang", f"no end within {outcome.command.seconds:.0f} s")
            return False
        if has_traceback(text):
            case.find("traceback", f"{raised(text)}\n{last_lines(text)}")
        elif outcome.code not in (0, 1):
            case.find("exit code", f"{outcome.code}\n{last_lines(text)}")
        elif outcome.code == 1:
            known = [*change.path.relative_to(case.directory).parts, *names]
            if not outcome.err.strip():
                case.find("message", f"exit code 1 without a message\n{last_lines(text)}")
            elif not any(name in text for name in known):
                case.find("message", f"names none of {', '.join(known)}\n{last_lines(text)}")
            self.check_nothing_lost(case, change)
        if re.search(r"^\S+\.py:\d+: \w*Warning", text, re.MULTILINE):
            case.find("message", f"a raw warning\n{last_lines(text)}")
        return outcome.code == 0

    @staticmethod
    def check_nothing_lost(case: Case, change: Change) -> None:
        """After a command that failed, all files of results are still there, and the rows that they had."""
        lost = [path for path in change.others if not path.is_file()]
        lost += [path for path, rows in change.others.items() if path.is_file() and not _content(path).startswith(rows)]
        if lost:
            names = ", ".join(str(path.relative_to(case.directory)) for path in lost)
            case.find("lost file", f"after a failed command: {names}")

    def resume(self, case: Case, change: Change) -> Steps:
        """Resume the interrupted run."""
        outcome = yield self.command(case, "resume=cut")
        if self.check(case, outcome, change):
            self.check_run(case, change, case.directory / "cut", "run")

    def prolong(self, case: Case, change: Change) -> Steps:
        """Continue the finished run for more epochs."""
        outcome = yield self.command(case, "resume=run", "trainer.epochs=8")
        if self.check(case, outcome, change):
            self.check_run(case, change, case.directory / "run", "long")

    def check_run(self, case: Case, change: Change, directory: Path, expected: str) -> None:
        """A run that was resumed has the results of the undisturbed one."""
        names = ("metrics.csv", "best.pt", "last.pt")
        ours = {name: value for name, value in fingerprint(directory).items() if name in names}
        theirs = {name: value for name, value in self.corpus.expected(expected).items() if name in names}
        if change.plain and change.path.name == "config.yaml" and epochs(directory) != epochs(self.corpus[expected]):
            return
        if different := differences(ours, theirs):
            case.find("wrong result", f"exit code 0, but {', '.join(different)} differ from the undisturbed run")

    def again(self, case: Case, change: Change) -> Steps:
        """Start the command of an existing run again, which must be refused and change nothing."""
        name = change.path.relative_to(case.directory).parts[0]
        outcome = yield self.command(case, *RUN, f"hydra.run.dir={name}")
        if self.check(case, outcome, change):
            case.find("wrong result", "a run was started in the directory of another one")

    def resume_sweep(self, case: Case, change: Change) -> Steps:
        """Resume the interrupted sweep, or start its command again."""
        lines = case.draw.choice([("resume=cutsweep",), (*SWEEP, "hydra.sweep.dir=cutsweep")])
        outcome = yield self.command(case, *lines)
        if not self.check(case, outcome, change):
            return
        directory = case.directory / "cutsweep"
        ours, theirs = fingerprint(directory), self.corpus.expected("sweep")
        if not change.plain:
            self.check_table(case, directory / "sweep.csv", self.corpus["sweep"] / "sweep.csv")
        for name in differences(ours, theirs):
            path = Path(name)
            read = path.suffix in (".csv", ".pt") and len(path.parts) == 2 and path.parts[0] != "tables"
            if read and name in theirs and not self.is_untouched(directory, path, change):
                case.find("wrong result", f"exit code 0, but {name} differs from the undisturbed sweep")
                break

    def is_untouched(self, directory: Path, path: Path, change: Change) -> bool:
        """Return whether a file of a job is not expected to be as in the undisturbed sweep.

        This is the changed file of a job that was finished before, or a file of a job that has another config.
        """
        if directory / path == change.path and change.job_finished:
            return True
        config, expected = (root / path.parent / "config.yaml" for root in (directory, self.corpus["sweep"]))
        return not config.is_file() or config.read_bytes() != expected.read_bytes()

    def another_run(self, directory: Path, path: Path) -> bool:
        """Return whether a directory of a sweep has another config than in the undisturbed sweep, or none."""
        config = directory / "config.yaml"
        expected = self.corpus["sweep"] / path.parent / "config.yaml"
        return not (config.is_file() and expected.is_file()) or config.read_bytes() != expected.read_bytes()

    def finished_sweep(self, case: Case, change: Change) -> Steps:
        """Compare the finished sweep, or read it in Python."""
        if case.draw.random() < 0.3:
            yield from self.read(case, change, "sweep", read_sweep)
            return
        command = case.draw.choice(["compare", "compare", "resume", "again"])
        if command == "compare":
            outcome = yield self.command(case, "sweep", module="dlhw.compare")
        else:
            lines = ("resume=sweep",) if command == "resume" else (*SWEEP, "hydra.sweep.dir=sweep")
            outcome = yield self.command(case, *lines)
        if self.check(case, outcome, change) and not change.plain:
            self.check_table(case, case.directory / "sweep" / "sweep.csv", self.corpus["sweep"] / "sweep.csv")

    @staticmethod
    def check_table(case: Case, path: Path, expected: Path) -> None:
        """The numbers of a table of runs are those of the undisturbed sweep, or missing."""
        ours, theirs = table(path), table(expected)
        for job, row in theirs.items():
            rows = [ours[name] for name in ours if re.fullmatch(rf"{re.escape(job)}(-\d+)?", name)]
            wrong = [[text for text in map(functools.partial(_other_cell, own, row), row) if text] for own in rows]
            if not rows:
                case.find("wrong result", f"sweep.csv lacks {job}")
            elif all(wrong):
                case.find("wrong result", f"sweep.csv: {job}, {wrong[0][0]}")

    def read_run(self, case: Case, change: Change) -> Steps:
        """Read the finished run in Python, or compare it with another."""
        if case.draw.random() < 0.6:
            yield from self.read(case, change, "run", read_run)
            return
        outcome = yield self.command(case, "run", "other", "-o", "out", module="dlhw.compare")
        if self.check(case, outcome, change) and not change.plain:
            expected = self.compared()
            self.check_table(case, case.directory / "out" / "sweep.csv", expected)

    @functools.cache  # noqa: B019
    def compared(self) -> Path:
        """Return the table of the comparison of the undisturbed runs."""
        for name in ("run", "other"):
            self.corpus[name]
        command = Command(("run", "other", "-o", "out"), at=self.corpus.root, module="dlhw.compare", seconds=300)
        outcome = run(command)
        assert outcome.code == 0, outcome.err
        return self.corpus.root / "out" / "sweep.csv"

    def read(self, case: Case, change: Change, name: str, function: Callable[[str], object]) -> Steps:
        """Read a directory in Python. Each part is that of the undisturbed one, or a UsageError."""
        outcome = yield self.command(case, function=with_argument(function, name))
        if not self.check(case, outcome, change):
            return
        parts = json.loads(outcome.out.splitlines()[-1])
        expected = self.expected_parts(name, function)
        for part, result in parts.items():
            message = result.get("error")
            if message is not None:
                if not any(text in message for text in (change.path.name, change.path.parent.name, name)):
                    case.find("message", f"{part}: names no file: {message[:300]}")
            elif result != expected[part] and not self.says_so(change, part, result["value"]):
                case.find("wrong result", f"{part}: {first_difference(result, expected[part])}")

    @staticmethod
    def says_so(change: Change, part: str, value: object) -> bool:
        """Return whether a part that differs is what the changed file says, which nobody can tell to be wrong."""
        if part.startswith("model"):
            return False
        if part == "summary" and not change.path.exists():
            return value == {}  # as of a run that has not ended
        if part in ("config", "summary") and isinstance(value, dict) and change.path.stem == part:
            return mapping_in(change.path) == value
        return change.plain

    @functools.cache  # noqa: B019
    def expected_parts(self, name: str, function: Callable[[str], object]) -> dict[str, Any]:
        """Return what the undisturbed directory holds."""
        self.corpus[name]
        outcome = run(Command((), at=self.corpus.root, function=with_argument(function, name), seconds=300))
        assert outcome.code == 0, outcome.err
        parts: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])
        return parts

    def pictures(self, case: Case, change: Change) -> Steps:
        """Train on the folder again, with its cache and without."""
        outcome = yield self.command(case, *PICTURES, "hydra.run.dir=with")
        with_cache = self.check(case, outcome, change, names=["photos", "groups", "cache"])
        outcome = yield self.command(case, *PICTURES, "dataset.cache_dir=new", "hydra.run.dir=without")
        without = self.check(case, outcome, change, names=["photos", "groups", "cache"])
        if with_cache and without:
            names = differences(*(fingerprint(case.directory / name) for name in ("with", "without")))
            if any(Path(name).suffix != ".json" for name in names):
                case.find("wrong result", f"{', '.join(names)} differ with the cache and without it")
        elif with_cache and not any(kind == "hang" for kind, _ in case.findings):
            case.find("wrong result", "trains with the cache, but not without it")
        elif without and change.path.suffix in (".pictures", ".json"):
            case.find("stuck", f"a damaged cache is not made again\n{last_lines(outcome.err)}")

    def predict(self, case: Case, change: Change) -> Steps:
        """Classify pictures with the run."""
        lines = ("pictures", "photos/cat", "--json")
        outcome = yield self.command(case, *lines, module="dlhw.predict")
        if self.check(case, outcome, change) and not change.plain and change.path.parts[-3] != "photos":
            self.corpus["photos"]
            expected = self.predicted()
            told = change.path.name == "summary.json" and "no class names in summary.json" in outcome.err
            if outcome.out != expected and not told:
                case.find("wrong result", "other predictions than those of the undisturbed run")

    @functools.cache  # noqa: B019
    def predicted(self) -> str:
        """Return the predictions of the undisturbed run."""
        self.corpus["pictures"]
        lines = ("pictures", "photos/cat", "--json")
        return run(Command(lines, at=self.corpus.root, module="dlhw.predict", seconds=300)).out

    def own(self, case: Case, change: Change) -> Steps:
        """Run one's own experiment, or show its config, or run the one beside it."""
        more = case.draw.choice([("--cfg", "job"), ("hydra.run.dir=result", "trainer.epochs=1")])
        outcome = yield self.command(case, *OWN, *more)
        if self.check(case, outcome, change, names=["own", "=", "mine"]) and change.path.name == "own.yaml":
            problem = not_a_mapping(change.path)
            if problem:
                case.find("wrong result", f"exit code 0, but own.yaml {problem}")

    def idx(self, case: Case, change: Change) -> Steps:
        """Train on MNIST."""
        (case.directory / "idx").rename(case.directory / "data")
        outcome = yield self.command(case, *MNIST, "hydra.run.dir=result")
        if self.check(case, outcome, change, names=["MNIST", "mnist"]):
            case.find("wrong result", "a changed file of MNIST was accepted")


def with_argument(function: Callable[[str], object], name: str) -> Callable[[], object]:
    """Return the call of a function with a name."""
    result = functools.partial(function, name)
    result.__qualname__ = getattr(function, "__name__", "")  # type: ignore[attr-defined]
    return result


def limit_memory() -> None:
    """Limit the memory of this process and the size of its files."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raised(text: str) -> str:
    """Return the last line of a traceback and its last frame in dlhw."""
    frames = re.findall(r'File "[^"]*/dlhw/([\w/]+\.py)", line (\d+), in (\w+)', text)
    errors = re.findall(
        r"^((?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning|Iteration)\b.*)$", text, re.MULTILINE
    )
    where = ":".join(frames[-1][:2]) + f" {frames[-1][2]}" if frames else "no frame in dlhw"
    return f"{(errors or ['?'])[-1][:160]} ({where})"


def _content(path: Path) -> bytes:
    """Return the content of a file; empty if it is no regular file."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""


def first_difference(ours: object, theirs: object) -> str:
    """Return the parts of two values around the first place where they differ."""
    one, other = json.dumps(ours, sort_keys=True), json.dumps(theirs, sort_keys=True)
    same = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    start = max(0, same - 30)
    return f"...{one[start : start + 70]}... instead of ...{other[start : start + 70]}..."


def epochs(directory: Path) -> int | None:
    """Return the number of epochs in the config of a run."""
    import yaml

    try:
        number = yaml.safe_load((directory / "config.yaml").read_bytes())["trainer"]["epochs"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return number if isinstance(number, int) else None


def mapping_in(path: Path) -> object:
    """Return the content of a YAML or JSON file as JSON would write it; None if there is none."""
    import yaml

    try:
        return json.loads(json.dumps(yaml.safe_load(path.read_bytes()), default=str))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError):
        return None


def not_a_mapping(path: Path) -> str | None:
    """Return why a YAML file holds no mapping; None if it does or is empty."""
    import yaml

    if not path.is_file():
        return "is not a file"
    if path.stat().st_rdev or path.is_symlink():
        return None
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return "is not YAML"
    except (RecursionError, ValueError):
        return "cannot be read"
    return None if content is None or isinstance(content, dict) else f"holds {type(content).__name__}"


def _other_cell(ours: dict[str, str], theirs: dict[str, str], column: str) -> str | None:
    """Describe how a number of a job differs from the expected one; None if it is equal or missing."""
    if column in ("job", "status", "reason") or ours.get(column, "") in ("", theirs[column]):
        return None
    return f"{column}: {ours[column]} instead of {theirs[column]}"


def table(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a CSV file by job."""
    import csv

    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {Path(row["job"]).name: row for row in csv.DictReader(file)}


def read_run(name: str) -> None:
    """Print every part of a run as JSON; a UsageError as its message."""
    from omegaconf import OmegaConf

    import dlhw

    def weights(which: Literal["best", "last"]) -> str:
        sha256 = hashlib.sha256()
        for key, value in opened().model(which).state_dict().items():
            sha256.update(f"{key} {value.dtype} {value.tolist()}".encode())
        return sha256.hexdigest()

    opened = functools.partial(dlhw.load_run, name)
    parts: dict[str, Callable[[], object]] = {
        "config": lambda: OmegaConf.to_container(opened().config, resolve=True),
        "metrics": lambda: opened().metrics.to_csv(),  # noqa: PLW0108 -- reads the file
        "summary": lambda: opened().summary,
        "model best": lambda: weights("best"),
        "model last": lambda: weights("last"),
        "representation": lambda: str(opened()).startswith("Run("),
    }
    print_parts(parts)


def read_sweep(name: str) -> None:
    """Print the table of a sweep as JSON; a UsageError as its message."""
    import dlhw

    print_parts({"table": lambda: dlhw.load_sweep(name).to_csv()})


def print_parts(parts: dict[str, Callable[[], object]]) -> None:
    """Print the values of functions as JSON, and what they print or log before that."""
    from dlhw.errors import UsageError

    results: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        try:
            results[name] = {"value": part()}
        except UsageError as error:
            results[name] = {"error": str(error)}
    print(json.dumps(results, default=str))


SCENARIOS = {
    "resume": Scenario(6, ("cut",), ("cut/*", "cut/probes/*", "cut/.hydra/*"), Drill.resume),
    "prolong": Scenario(3, ("run",), ("run/*", "run/.hydra/*"), Drill.prolong),
    "again": Scenario(1, ("cut",), ("cut/*", "cut/.hydra/*"), Drill.again),
    "resumed sweep": Scenario(4, ("cutsweep",), ("cutsweep/*", "cutsweep/*/*"), Drill.resume_sweep),
    "sweep": Scenario(3, ("sweep",), ("sweep/*", "sweep/*/*", "sweep/tables/*"), Drill.finished_sweep),
    "read": Scenario(5, ("run", "other"), ("run/*", "run/probes/*", "run/.hydra/*"), Drill.read_run),
    "pictures": Scenario(3, ("photos",), ("photos/*/*", "cache/*", "cache/*", "groups.csv"), Drill.pictures),
    "predict": Scenario(2, ("pictures", "photos"), ("pictures/*", "photos/cat/*"), Drill.predict),
    "own": Scenario(2, ("mine",), ("mine/experiment/*",), Drill.own),
    "idx": Scenario(1, ("idx",), tuple(f"idx/MNIST/raw/{name}" for name in IDX_FILES[1:]), Drill.idx),
}


def main() -> None:
    options_parser = parser(__doc__ or "", count=2000)
    options_parser.add_argument(
        "--limit", type=float, default=30, help="seconds for one command, more on a busy machine (default: 30)"
    )
    options_parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="default: all"
    )
    options = options_parser.parse_args()
    data = Path(os.environ["DLHW_DATA"]) if os.environ.get("DLHW_DATA") else None
    more = [] if options.scenarios == list(SCENARIOS) else ["--scenarios", *options.scenarios]
    with working_directory() as directory:
        files = Drill(Corpus(directory / "corpus", data), names=options.scenarios, seconds=options.limit)
        code = drill(options, directory, files.steps, repeat=repeat_line("files.py", options, *more))
    sys.exit(code)


if __name__ == "__main__":
    main()
