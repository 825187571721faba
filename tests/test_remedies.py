"""What an error about a damaged file says to do makes the run or sweep whole again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlhw import load_run, load_sweep
from dlhw.compare import compare
from dlhw.errors import UsageError
from support.commands import dlhw
from support.sweeps import QUICK

DAMAGE = b'x,"\n[\n'


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose jobs have two checkpoints each."""
    at = tmp_path_factory.mktemp("sweep")
    result = dlhw("-m", *QUICK, "trainer.epochs=2", "trainer.checkpoint_seconds=0", "seed=0,1", at=at)
    assert result.code == 0, result.err
    return at / "S"


@pytest.fixture
def copy(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "S"))


def metrics(run: Path) -> object:
    return load_run(run).metrics


def summary(run: Path) -> object:
    return load_run(run).summary


def resumed(run: Path) -> object:
    result = dlhw(f"resume={run}", "trainer.epochs=3", at=run.parent)
    if result.code:
        raise UsageError(result.err.strip())
    return result


def compared(directory: Path) -> object:
    return compare([directory])


def follow(message: str, path: Path, intact: bytes) -> None:
    """Do what the message says about the damaged file: the last of its alternatives."""
    remedy = message.partition("; ")[2]
    others = re.findall(r"delete it and ([\w.]+)", remedy)
    assert "delete it" in remedy, remedy
    for name in (path.name, *others):
        (path.parent / name).unlink()
    if "compare the runs again" in remedy:
        compare([path.parent])
    else:
        result = dlhw(f"resume={path.parent}", at=path.parent)
        assert result.code == 0, result.err
    assert _content(path) == _content_of(intact, path.suffix)


def _content(path: Path) -> Any:
    return _content_of(path.read_bytes(), path.suffix)


def _content_of(content: bytes, suffix: str) -> Any:
    """The content of a file without what differs between two calls."""
    if suffix == ".pt":
        return None
    if suffix == ".json":
        return {name: value for name, value in json.loads(content).items() if name in ("status", "best", "runs")}
    return content


@pytest.mark.parametrize(
    ("name", "read", "finished"),
    [
        ("metrics.csv", metrics, True),
        ("metrics.csv", metrics, False),
        ("summary.json", summary, True),
        ("last.pt", resumed, False),
    ],
)
def test_remedy_for_a_file_of_a_run(copy: Path, name: str, read: Callable[[Path], object], finished: bool) -> None:
    run = copy / "seed=0"
    path = run / name
    intact = path.read_bytes()
    if not finished:
        (run / "summary.json").unlink()
    path.write_bytes((run / "best.pt").read_bytes() if name == "last.pt" else DAMAGE)
    with pytest.raises(UsageError) as error:
        read(run)
    follow(str(error.value), path, intact)


def test_finished_run_does_not_start_again_from_the_first_epoch(copy: Path) -> None:
    run = copy / "seed=0"
    shutil.copy(run / "best.pt", run / "last.pt")
    with pytest.raises(UsageError, match=r"; restore it, or start a new run$"):
        resumed(run)


@pytest.mark.parametrize(("name", "read"), [("sweep.csv", load_sweep), ("summary.json", compared)])
def test_remedy_for_a_file_of_a_sweep(copy: Path, name: str, read: Callable[[Path], object]) -> None:
    path = copy / name
    intact = path.read_bytes()
    path.write_bytes(DAMAGE)
    with pytest.raises(UsageError, match=r"; delete it, then compare the runs again, which writes it$") as error:
        read(copy)
    follow(str(error.value), path, intact)


def test_remedy_for_a_file_of_a_comparison_does_not_overwrite_it(copy: Path, tmp_path: Path) -> None:
    compare([copy], output=tmp_path / "compared")
    (tmp_path / "compared" / "sweep.csv").write_bytes(DAMAGE)
    with pytest.raises(UsageError, match=r"; restore it, or compare the runs again into a new directory$"):
        load_sweep(tmp_path / "compared")


@pytest.mark.parametrize("name", ["config.yaml", "best.pt"])
def test_remedy_for_a_file_that_is_not_written_again_is_to_restore_it_or_start_anew(copy: Path, name: str) -> None:
    (copy / "seed=0" / name).write_bytes(DAMAGE)
    with pytest.raises(UsageError, match=r"; restore it, or start (a new run|again in a new directory)$"):
        load_run(copy / "seed=0").model("best")


def test_damaged_times_and_overrides_of_a_run_are_no_errors(copy: Path) -> None:
    for name in ("timing.csv", ".hydra/overrides.yaml"):
        (copy / "seed=0" / name).write_bytes(DAMAGE)
    compare([copy])
    assert load_sweep(copy).jobs["status"].tolist() == ["finished", "finished"]
