"""``dlhw ls``, ``dlhw show`` and the search for the newest run."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from dlhw import load_sweep, ls, show
from dlhw.errors import UsageError
from dlhw.runtime.files import LOCK_FILE, locked
from dlhw.storage.listing import entries, locate
from support.run_directories import make_run, make_sweep, write_config


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, a sweep of two runs, a run that was interrupted and one that failed, each a second older."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs"
    for name in ("a/2026-01-05_10-00-00", "a/2026-01-04_10-00-00"):
        make_run(folder / name)
    make_sweep(folder / "a" / "2026-01-03_10-00-00", {"b=0": [1.0], "b=1": [2.0]})
    interrupted, failed = folder / "b" / "2026-01-02_10-00-00", folder / "b" / "2026-01-01_10-00-00"
    for path in (interrupted, failed):
        path.mkdir(parents=True)
        write_config(path)
    (interrupted / "metrics.csv").write_text("epoch,val_loss\n1,0.5\n2,0.4\n")
    (failed / "summary.json").write_text('{"status": "failed", "reason": "TrainingFailed: loss nan"}')
    (folder / "notes").mkdir()
    for age, path in enumerate((*sorted(folder.glob("a/*"), reverse=True), interrupted, failed)):
        os.utime(path, (1e9 - age, 1e9 - age))
    return folder


def test_entries_are_sorted_by_their_start(outputs: Path) -> None:
    found = entries(outputs)
    assert [entry.path.name for entry in found] == [f"2026-01-0{day}_10-00-00" for day in (5, 4, 3, 2, 1)]
    assert [entry.kind for entry in found] == ["run", "run", "sweep", "run", "run"]
    assert [entry.status for entry in found] == ["finished", "finished", "unfinished", "unfinished", "failed"]
    assert found[0].started == datetime(2026, 1, 5, 10)
    assert [entry.epochs for entry in found[3:]] == [2, None]
    assert len(entries(outputs, jobs=True)) == 7


def test_locked_run_is_running(outputs: Path) -> None:
    path = outputs / "b" / "2026-01-02_10-00-00"
    with locked(path / LOCK_FILE, wait=False, busy=""):
        assert entries(path)[0].status == "running"
    assert entries(path)[0].status == "unfinished"


def test_damaged_summary_is_unreadable_and_the_others_are_listed(outputs: Path) -> None:
    (outputs / "a" / "2026-01-05_10-00-00" / "summary.json").write_text("{")
    assert [entry.status for entry in entries(outputs)[:2]] == ["unreadable", "finished"]


def test_locate_finds_the_newest(outputs: Path) -> None:
    newest = outputs / "a" / "2026-01-05_10-00-00"
    assert locate(Path("last")) == Path("outputs") / newest.relative_to(outputs)
    assert locate(outputs) == locate(outputs / "a") == locate(newest) == newest
    assert locate(outputs / "b") == outputs / "b" / "2026-01-02_10-00-00"
    assert locate(outputs, "sweep") == outputs / "a" / "2026-01-03_10-00-00"
    os.utime(outputs / "b" / "2026-01-01_10-00-00", (2e9, 2e9))
    assert locate(outputs) == outputs / "b" / "2026-01-01_10-00-00"
    assert locate(outputs / "notes") == outputs / "notes"  # the caller refuses it
    (outputs.parent / "last").mkdir()
    assert locate(Path("last")) == Path("last")


def test_table_has_a_line_per_run(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ls.main([])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(ls.HEADER)
    assert [line.split()[-1] for line in lines] == [str(entry.path) for entry in entries(Path("outputs"))]
    ls.main(["outputs/b", "--status", "failed"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    ls.main(["--json", "--experiment", "nothing"])
    assert json.loads(capsys.readouterr().out) == []


def test_only_the_newest_are_shown_unless_all_are_asked_for(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "SHOWN", 2)
    ls.main([])
    assert capsys.readouterr().out.splitlines()[3:] == ["3 older ones are not shown (--all)"]
    ls.main(["--all"])
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_card_of_a_run_names_the_next_command(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.main(["outputs/b"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["epochs"] == "2 finished"
    assert lines["next"] == "dlhw resume=outputs/b/2026-01-02_10-00-00"
    show.main(["outputs/b/2026-01-01_10-00-00"])
    assert "failed, started 2026-01-01 10:00: TrainingFailed: loss nan" in " ".join(capsys.readouterr().out.split())


def test_what_is_neither_run_nor_sweep_is_one_line(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["outputs/notes"], ["nowhere"]):
        with pytest.raises(SystemExit) as ended:
            show.main(arguments)
        assert ended.value.code == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UsageError, match=r"^nowhere: no such directory; expected the directory of a run or sweep$"):
        entries(Path("nowhere"))


def test_last_without_a_sweep_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs" / "a" / "b")
    with pytest.raises(UsageError, match=r"^last: no sweep in outputs$"):
        load_sweep()
