"""The command ``python -m dlhw.compare``: its directories, options, errors and imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlhw.compare import compare, main
from dlhw.errors import UsageError
from dlhw.views.comparison import compare_runs
from support.run_directories import NO_CURVES, make_run, make_sweep, read_rows


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
            ["{0}/sweep", "-o", "{0}/run"],
            "--output {0}/run: contains something else; expected a new or empty directory, or that of an earlier "
            "comparison",
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
    with pytest.raises(SystemExit) as raised:
        main([text.format(tmp_path) for text in arguments])
    assert raised.value.code == 1
    assert capsys.readouterr().err.strip() == message.format(tmp_path)


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
