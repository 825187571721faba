"""The command ``python -m dlhw.compare``: its directories, options, errors and imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlhw import load_sweep
from dlhw.compare import compare, main
from dlhw.errors import UsageError
from dlhw.storage import stored
from dlhw.views.comparison import compare_runs
from support.run_directories import NO_CURVES, make_run, make_sweep, read_rows, write_config


def test_comparing_a_sweep_in_place_keeps_its_order_and_command(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=10": [2.0], "b=9": [1.0]})
    missing = tmp_path / "b=11,seed=0"
    compare_runs(
        tmp_path,
        [*runs, missing],
        comparison=NO_CURVES,
        failures={missing: "no"},
        overrides={missing: ["b=11", "seed=0"]},
        about={"command": "kept"},
    )
    before = (tmp_path / "sweep.csv").read_bytes()
    assert "lowest mean validation error: b = 9" in compare([tmp_path])
    assert (tmp_path / "sweep.csv").read_bytes() == before
    assert json.loads((tmp_path / "summary.json").read_text())["command"] == "kept"


def test_jobs_without_results_remain_in_the_sweep(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0.0": [5.0], "b=1": [1.0], "b=2": [0.5]}, config={"other": 1})
    missing, failed = tmp_path / "b=1,seed=1", tmp_path / "b=3,seed=0"
    failed.mkdir()
    (failed / "summary.json").write_text('{"status": "failed", "reason": "UsageError: b=3: no"}')
    overrides = {missing: ["b=1", "seed=1"], failed: ["b=3", "seed=0"]}
    compare_runs(tmp_path, [*runs[:2], missing, failed, runs[2]], comparison=NO_CURVES, overrides=overrides)
    before = (tmp_path / "sweep.csv").read_bytes()
    assert "lowest mean validation error: b = 2" in compare([tmp_path])
    assert (tmp_path / "sweep.csv").read_bytes() == before
    shutil.rmtree(runs[2])
    for target in (None, tmp_path.parent / f"{tmp_path.name}-out"):
        assert "lowest mean validation error: b = 0.0" in compare([tmp_path], output=target)
        rows = read_rows((target or tmp_path) / "sweep.csv")
        statuses = [(row["job"], row["status"], row["b"], row["seed"]) for row in rows]
        assert statuses == [
            ("b=0.0,seed=0", "finished", "0.0", "0"),
            ("b=1,seed=0", "finished", "1", "0"),
            ("b=1,seed=1", "unfinished", "1", "1"),
            ("b=3,seed=0", "failed", "3", "0"),
            ("b=2,seed=0", "unfinished", "2", "0"),
        ]
        assert rows[3]["reason"] == "UsageError: b=3: no"


def test_job_whose_directory_is_a_file_is_unfinished(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [5.0], "b=1": [1.0]})
    compare_runs(tmp_path, runs, comparison=NO_CURVES)
    shutil.rmtree(runs[1])
    runs[1].write_text("a file")
    assert "lowest mean validation error: b = 0" in compare([tmp_path])
    assert [row["status"] for row in read_rows(tmp_path / "sweep.csv")] == ["finished", "unfinished"]


def test_sweeps_and_runs_can_be_compared_together(tmp_path: Path) -> None:
    make_sweep(tmp_path / "one", {"b=0": [2.0]})
    make_sweep(tmp_path / "two", {"b=1": [1.0]})
    single = make_run(tmp_path / "run", "b=2", "seed=0")
    compare([tmp_path / "one", tmp_path / "two", single, tmp_path / "two"], output=tmp_path / "out" / "all")
    rows = read_rows(tmp_path / "out" / "all" / "sweep.csv")
    assert [row["job"] for row in rows] == ["one/b=0,seed=0", "two/b=1,seed=0", "run"]


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["../a/x", "b/x"], ["a/x", "here/b/x"]),
        (["b/x", "{0}/a/x", "../here/b/x"], ["here/b/x", "a/x"]),
        (["b/x", "b/y"], ["x", "y"]),
        (["b/../b/x"], ["x"]),
        (["../sweep", "b/x"], ["sweep/c=0,seed=0", "here/b/x"]),
        (["b/x/.", "../here/b/y/../x"], ["x"]),
        (["b/link", "b/y"], ["link", "y"]),
        (["bytes"], ["\\udcfe", "\\udcff"]),
    ],
    ids=repr,
)
def test_jobs_have_valid_different_names_wherever_their_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], jobs: list[str]
) -> None:
    for b, name in enumerate([b"a/x", b"here/b/x", b"here/b/y", b"here/bytes/\xfe", b"here/bytes/\xff"]):
        make_run(tmp_path / os.fsdecode(name), f"b={b}", config={"b": b})
    make_sweep(tmp_path / "sweep", {"c=0": [1.0]})
    (tmp_path / "here" / "b" / "link").symlink_to(tmp_path / "a" / "x")
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):  # the second time into the earlier comparison
        compare([text.format(tmp_path) for text in arguments], output="out")
        assert list(load_sweep("out").jobs.index) == jobs


def test_run_in_the_working_directory_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "b=0" / "run").parent / "run")
    compare(".", output=tmp_path / "out")
    assert list(load_sweep(tmp_path / "out").jobs.index) == ["run"]


@pytest.mark.parametrize("given", [str, Path, lambda path: [str(path)], lambda path: (one for one in [path])])
def test_one_directory_or_several_are_compared_from_python(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    assert "lowest mean validation error: b = 1" in compare(given(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "DIR: missing; expected the directory of a run or sweep"),
        (3, "DIR=3: must be a path"),
        ("", "DIR=: must be a path"),
        ("b", "b: no such directory; expected the directory of a run or sweep"),
    ],
)
def test_what_is_not_a_directory_is_one_line_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        compare(given)
    assert str(raised.value) == message


def test_files_of_a_run_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    reads: Counter[Path] = Counter()
    read_text = stored.read_text

    def counting_read_text(path: Path, **options: Any) -> str | None:
        reads[path] += 1
        return read_text(path, **options)

    monkeypatch.setattr(stored, "read_text", counting_read_text)
    compare(tmp_path, figure_options={"curves": ["val_loss"]})
    names = ["config.yaml", "summary.json", "metrics.csv", ".hydra/overrides.yaml"]
    assert [reads[runs[1] / name] for name in names] == [1, 1, 1, 1]
    assert [reads[runs[0] / name] for name in names[1:]] == [1, 1, 1]  # its config has the options, too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": 3}, "comparison.x=3: must be 'epoch' or 'step'"),
        ({"log_x": "maybe"}, "comparison.log_x=maybe: must be true or false"),
        ({"curves": "val_loss"}, "comparison.curves=val_loss: must be a list"),
        ({"overlay": ["b"]}, "comparison.overlay=['b']: must be a string"),
        ({"against": [object()]}, "comparison.against[0]: Value 'object' is not a supported primitive type"),
        ({"curves": ["${b}"]}, "comparison.curves[0]: refers to b, which the config does not have"),
        (
            {"curve": ["val_loss"]},
            "comparison.curve: unknown option of comparison=default (did you mean curves?); expected one of curves, x, "
            "log_x, overlay, against, probes",
        ),
    ],
)
def test_invalid_figure_option_is_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    with pytest.raises(UsageError) as raised:
        compare(tmp_path, figure_options=options)
    assert str(raised.value) == message
    if "object" in repr(options) or "$" in repr(options):  # a config that was read has no such value
        return
    write_config(runs[0], comparison={"_target_": "x", **options})
    with pytest.raises(UsageError) as raised:
        compare(tmp_path)
    expected = f"{runs[0] / 'config.yaml'}: {message}; restore it, or start again in a new directory"
    assert str(raised.value) == expected
    assert not (tmp_path / "sweep.csv").exists()


def test_valid_figure_options_are_used(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    options = {"log_x": True, "x": "epoch", "overlay": None, "curves": ("val_loss",)}
    assert "not drawn" not in compare(tmp_path, figure_options=options)
    assert (tmp_path / "comparison.png").is_file()


def test_figure_options_override_those_of_the_first_config(tmp_path: Path) -> None:
    node = {"comparison": {"_target_": "x", "curves": ["unknown"], "overlay": None, "against": [], "probes": ["norm"]}}
    make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]}, config=node)
    assert "comparison.png: not drawn (no run has any of the columns unknown)" in compare([tmp_path])
    printed = compare([tmp_path], figure_options={"curves": ["val_loss"]})
    assert "comparison.png" not in printed
    assert "figures/probe_norm.png: not drawn" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/none"], "{0}/none: no such directory; expected the directory of a run or sweep"),
        (
            ["{0}/sweep", "{0}/run"],
            "--output: missing; expected a directory for the comparison of several directories",
        ),
        (
            ["{0}/latin"],
            "{0}/latin/sweep.csv: not UTF-8 text (byte 6); delete it, then compare the runs again, which writes it",
        ),
        (["{0}/run"], "--output: missing; expected a directory for the comparison of a single run, {0}/run"),
        (
            ["{0}/sweep", "-o", "{0}/latin"],
            "--output {0}/latin: contains something else; expected a new or empty directory, or that of an earlier "
            "comparison",
        ),
        (
            ["{0}/sweep", "-o", "{0}/run"],
            "--output {0}/run: the directory of a run; expected a directory that is not in a run",
        ),
        (
            ["{0}/sweep", "-o", "{0}/run/new/one"],
            "--output {0}/run/new/one: in the directory of a run, {0}/run; expected a directory that is not in a run",
        ),
        (
            ["{0}/run", "-o", "{0}/sweep/b=0,seed=0/.hydra/new"],
            "--output {0}/sweep/b=0,seed=0/.hydra/new: in the directory of a run, {0}/sweep/b=0,seed=0; expected a "
            "directory that is not in a run",
        ),
    ],
)
def test_invalid_arguments_give_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_sweep(tmp_path / "sweep", {"b=0": [2.0], "b=1": [1.0]})
    make_run(tmp_path / "run")
    make_sweep(tmp_path / "latin", {"b=0": [2.0]})
    (tmp_path / "latin" / "sweep.csv").write_bytes("job,größe\nx,1\n".encode("latin-1"))
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as raised:
        main([text.format(tmp_path) for text in arguments])
    assert raised.value.code == 1
    assert capsys.readouterr().err.strip() == message.format(tmp_path)
    assert contents(tmp_path) == before


def test_directory_without_runs_raises_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor a sweep"):
        compare([tmp_path])


def test_comparing_does_not_import_torch_pandas_sklearn_or_pyplot(tmp_path: Path) -> None:
    make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(3)})
    code = "import sys, dlhw.compare; dlhw.compare.main(sys.argv[1:]); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded = set(process.stdout.splitlines()[-1].split())
    assert "dlhw.views.comparison.figures" in loaded
    assert loaded.isdisjoint({"torch", "pandas", "sklearn", "matplotlib.pyplot"})


def test_importing_compare_does_not_import_slow_libraries() -> None:
    code = "import sys, dlhw.compare, dlhw.views.comparison; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(process.stdout.split()).isdisjoint({"torch", "pandas", "hydra", "matplotlib", "numpy"})


# What is written where


def stranger(path: Path) -> Path:
    """Make the folder of another Hydra program, with a config in a subfolder and files with dlhw's names."""
    (path / "app" / ".hydra").mkdir(parents=True)
    (path / "app" / "config.yaml").write_text("seed: 0\nname: app\nmodel: {layers: 3}\n")
    (path / "app" / ".hydra" / "overrides.yaml").write_text("- b=1\n")
    (path / "summary.json").write_text('{"mine": true}')
    (path / "sweep.csv").write_text("name,size\na,1\n")
    return path


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("table", [True, False])
def test_files_of_other_programs_are_not_changed(tmp_path: Path, table: bool) -> None:
    folder = stranger(tmp_path / "folder")
    if not table:
        (folder / "sweep.csv").unlink()
    before = contents(folder)
    with pytest.raises(
        UsageError, match=r"sweep\.csv: not the table of a sweep|app; expected|not the config of a run|neither a run"
    ):
        compare([folder])
    make_sweep(tmp_path / "sweep", {"b=0": [2.0], "b=1": [1.0]})
    for output in (folder, folder / "app"):
        with pytest.raises(UsageError, match="contains something else"):
            compare([tmp_path / "sweep"], output=output)
    assert contents(folder) == before


def test_runs_in_a_folder_are_compared_in_another_directory(tmp_path: Path) -> None:
    for b in (0, 1):
        make_run(tmp_path / "runs" / str(b), f"b={b}", val=b)
    stranger(tmp_path / "runs" / "other")
    (tmp_path / "runs" / "app").mkdir()
    (tmp_path / "runs" / "app" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UsageError, match=f"^--output: missing; .* of a folder of runs, {tmp_path / 'runs'}$"):
        compare([tmp_path / "runs"])
    for _ in range(2):  # the second time into the earlier comparison
        compare([tmp_path / "runs"], output=tmp_path / "out")
        assert [row["job"] for row in read_rows(tmp_path / "out" / "sweep.csv")] == ["0", "1"]


def test_broken_run_of_a_sweep_does_not_prevent_the_comparison(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(4)})
    (runs[0] / "config.yaml").write_text("a: &x [1]\nb: [*x, *x]\n")
    (runs[1] / "summary.json").unlink()
    os.mkfifo(runs[1] / "summary.json")
    (runs[2] / "metrics.csv").write_text("epoch,val_error_percent\n1,nan\n")
    printed = compare([tmp_path], figure_options={"curves": ["val_error_percent"]})
    assert "lowest mean validation error: b = 2" in printed
    assert f"b=0,seed=0: failed: {runs[0] / 'config.yaml'}: YAML anchors and aliases are not supported" in printed
    assert f"b=1,seed=0: failed: {runs[1] / 'summary.json'}: a pipe, not a file" in printed
    assert f"{runs[2] / 'metrics.csv'}: row 1 is not that of epoch 1, with numbers only" in caplog.text
    statuses = [row["status"] for row in read_rows(tmp_path / "sweep.csv")]
    assert statuses == ["failed", "failed", "finished", "finished"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ["--curves", "val_los"],
            "--curves val_los: no run has this column (did you mean val_loss?); expected one of ",
        ),
        (["--overlay", "c"], "--overlay c: this key does not vary among the runs; expected one of b"),
        (["--against", "b", "bb"], "--against bb: this key does not vary among the runs (did you mean b?); expected "),
        (["--probes", "norm"], "--probes norm: no run has a probe with this column"),
        (["-o", ""], "--output : must be a path"),
    ],
)
def test_option_that_no_run_can_fulfil_gives_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], message: str
) -> None:
    make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    with pytest.raises(SystemExit) as raised:
        main([str(tmp_path), *option])
    assert raised.value.code == 1
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "sweep.csv").exists()


def test_folder_without_output_means_its_newest_sweep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "outputs" / "run", val=1)
    make_sweep(tmp_path / "outputs" / "a" / "s", {"b=0": [2.0], "b=1": [1.0]})
    make_sweep(tmp_path / "outputs" / "t", {"b=2": [2.0], "b=3": [1.0]})
    os.utime(tmp_path / "outputs" / "a" / "s", (1e9, 1e9))
    monkeypatch.chdir(tmp_path)
    assert "lowest mean validation error: b = 3" in compare("outputs")
    assert "lowest mean validation error: b = 3" in compare("last")
    assert "lowest mean validation error: b = 1" in compare("outputs/a")
    assert caplog.messages[0] == "outputs: the newest sweep is outputs/t"
    compare("outputs", output="out")  # the runs in the folder
    assert [row["job"] for row in read_rows(tmp_path / "out" / "sweep.csv")] == ["run"]
