"""The drill that changes files: its mutations change what they say, and a few of its cases have no findings."""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import random
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from support.drills import drill, run_drill
from support.marks import thorough

cases, changes, checkpoints, children = drill("cases"), drill("changes"), drill("checkpoints"), drill("children")
edits, files, fingerprints, mutations = drill("edits"), drill("files"), drill("fingerprints"), drill("mutations")

CONTENTS = {
    "summary.json": json.dumps({"status": "finished", "best": {"epoch": 3, "val_loss": 0.5}, "data": ["a", "b"]}),
    "config.yaml": yaml.safe_dump({"seed": 0, "trainer": {"epochs": 6, "device": "cpu"}, "model": {"hidden": [8, 9]}}),
    "metrics.csv": "epoch,step,val_loss\n1,9,0.5\n2,18,0.25\n3,27,0.2\n",
}


def make(path: Path) -> Path:
    """Create a valid file of the kind that the name says."""
    if path.suffix == ".pt":
        state = {"model": {"0.weight": torch.eye(3), "0.bias": torch.ones(3)}, "rows": [{"epoch": 1, "val_loss": 0.5}]}
        torch.save({**state, "epoch": 1, "shape": [3], "outputs": 3}, path)
    elif path.suffix == ".bin":
        path.write_bytes(bytes(range(256)))
    else:
        path.write_text(CONTENTS[path.name])
    return path


def content(path: Path) -> bytes | str:
    """Return what is at a path, without following links or opening pipes."""
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else f"exists: {path.exists()}"


@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "metrics.csv", "last.pt", "data.bin"])
def test_mutations_change_the_file_and_depend_on_the_random_numbers_only(tmp_path: Path, name: str) -> None:
    unchanged = 0
    for seed in range(15):
        results = []
        for repeat in range(2):
            directory = tmp_path / f"{seed}-{repeat}"
            directory.mkdir()
            path = make(directory / name)
            before = content(path)
            what = mutations.mutate(path, random.Random(seed), donors=[], marker=tmp_path / "marker")
            results.append((what, content(path)))
        unchanged += results[0][1] == before
        assert results[0][0] == results[1][0]
        assert results[0][1] == results[1][1] or name == "last.pt"  # an archive has times
    assert unchanged <= 3
    assert not (tmp_path / "marker").exists()


def pickles_in(path: Path) -> list[bytes]:
    """Return the pickles in a checkpoint: an archive, a pickle, or several pickles in a row."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    content, found = io.BytesIO(path.read_bytes()), []
    with contextlib.suppress(ValueError):  # of the storages, which follow the pickles of the old format
        while start := content.getvalue()[content.tell() :]:
            for _ in pickletools.genops(content):
                pass
            found.append(start)
    return found


def calls_in(pickled: bytes) -> set[str]:
    """Return the functions that a pickle would call, without unpickling it."""
    names, strings = set(), [""]
    for operation, argument, _ in pickletools.genops(io.BytesIO(pickled)):
        if operation.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return names


def test_malicious_files_would_call_a_function_that_creates_the_marker(tmp_path: Path) -> None:
    """Otherwise the drill could not notice that a file was executed."""
    kinds = set()
    for seed in range(20):
        marker, path = tmp_path / "marker", make(tmp_path / "last.pt")
        kinds.add(checkpoints.payload(marker)(path, random.Random(seed)))
        pickles = pickles_in(path)
        assert {"posix.mkdir"} <= set().union(*map(calls_in, pickles))
        assert any(str(marker).encode() in pickled for pickled in pickles)
        assert not marker.exists()
    assert len(kinds) == 4


def test_malicious_yaml_would_call_a_function_that_creates_the_marker(tmp_path: Path) -> None:
    for seed in range(6):
        path = make(tmp_path / "config.yaml")
        checkpoints.payload(tmp_path / "marker")(path, random.Random(seed))
        assert "python/" in path.read_text()
        assert "os.mkdir" in path.read_text()
        with pytest.raises(yaml.constructor.ConstructorError, match="python/"):
            yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("name", "old", "new", "plain"),
    [
        ("metrics.csv", "0.25", "0.26", True),
        ("metrics.csv", "0.25", "x", False),
        ("metrics.csv", "2,18,0.25\n", "", False),
        ("metrics.csv", "val_loss", "loss", False),
        ("summary.json", "0.5", "0.7", True),
        ("summary.json", "0.5", "null", False),
        ("summary.json", "0.5", "NaN", False),
        ("config.yaml", "seed: 0", "seed: 1", True),
        ("config.yaml", "seed: 0", "sed: 0", False),
        ("config.yaml", "- 8\n", "", False),
    ],
)
def test_plain_edits_are_those_that_nobody_can_notice(
    tmp_path: Path, name: str, old: str, new: str, plain: bool
) -> None:
    path = make(tmp_path / name)
    before = path.read_bytes()
    assert old.encode() in before
    path.write_bytes(before.replace(old.encode(), new.encode(), 1))
    assert edits.is_plain_edit(before, path) == plain


def findings(tmp_path: Path, code: int, *, err: str = "", metrics: str = CONTENTS["metrics.csv"]) -> list[str]:
    """Return the kinds of findings for a resumed run whose config was damaged, and that ended like this."""
    directory = tmp_path / "cut"
    directory.mkdir()
    make(directory / "metrics.csv")
    undisturbed = {"run": fingerprints.fingerprint(directory)}
    case = cases.Case("0", random.Random(0), tmp_path)
    change = changes.Change(
        directory / "config.yaml",
        "truncated",
        plain=False,
        marker=tmp_path / "executed",
        job_finished=False,
        others={directory / "metrics.csv": b"epoch,step,val_loss\n1,9,0.5\n"},
    )
    own = files.Drill(SimpleNamespace(expected=undisturbed.get), names=["resume"], seconds=30.0)
    (directory / "metrics.csv").write_text(metrics)
    outcome = children.Outcome(children.Command((), at=tmp_path), code, "", err, 1.0, False, (), False)
    if own.check(case, outcome, change):
        own.check_run(case, change, directory, "run")
    return [kind for kind, _ in case.findings]


@pytest.mark.parametrize(
    ("code", "err", "kinds"),
    [
        (0, "", []),
        (1, "cut/config.yaml: is not valid YAML", []),
        (1, "something is wrong", ["message without the file"]),
        (1, "", ["exit code 1 without a message"]),
        (3, "cut/config.yaml: is not valid YAML", ["exit code 3"]),
        (0, "/x/dlhw/a.py:3: UserWarning: y", ["raw warning"]),
        (1, 'Traceback (most recent call last):\n  File "/x/src/dlhw/a.py", line 3, in f\nKeyError: 3\n',
         ["traceback: KeyError: 0 in dlhw/a.py:f"]),
    ],
)  # fmt: skip
def test_drill_judges_how_a_command_ends(tmp_path: Path, code: int, err: str, kinds: list[str]) -> None:
    assert findings(tmp_path, code, err=err) == kinds


def test_other_results_and_lost_results_are_found(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    other = CONTENTS["metrics.csv"].replace("0.25", "0.26")
    assert findings(tmp_path / "one", 0, metrics=other) == ["wrong result"]
    assert findings(tmp_path / "two", 1, err="cut: damaged", metrics="epoch\n") == ["lost file"]


@pytest.mark.parametrize(
    "options",
    [
        ("--scenarios", "own", "--only", "1"),
        thorough((("--count", "25", "--seed", "1"),), name="many"),
    ],
)
def test_changed_files_have_no_findings(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = run_drill("files.py", *options, "--jobs", "1", at=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    assert "no findings" in ended.out
