"""The command line as a user runs it: exit codes, one-line errors, help, completion and sweeps.

Most tests call ``main`` in this process, which saves the seconds that a new process needs to import torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dlhw.cli import composition, program
from dlhw.cli.verbs import VERBS
from support.commands import RUN_FILES, SMALL, Ended, dlhw, files, only, start, summary
from support.processes import Process, environment


def test_error_ends_the_program_with_one_line_and_no_files(tmp_path: Path) -> None:
    ended = start("optimizer.lr=-1", at=tmp_path).end()
    assert ended == Ended(1, "", "optimizer.lr=-1: must be greater than or equal to 0\n")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "outputs"])


def test_hydra_full_error_shows_the_traceback(tmp_path: Path) -> None:
    ended = start("lr=3", at=tmp_path, HYDRA_FULL_ERROR="1").end()
    assert ended.code == 1
    assert ended.lines.count("Traceback (most recent call last):") >= 1
    assert ended.lines[-1].endswith("UsageError: lr: unknown key; did you mean optimizer.lr?")
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["lr=3"], "lr: unknown key; did you mean optimizer.lr?"),
        (["model=cnn", "model.kernel=4"], "model.kernel=4: must be odd, so that padding keeps the size"),
        (["seed=-1"], "seed=-1: must be a whole number from 0 to 9223372036854775807"),
        (["resume=nowhere"], "resume={at}/nowhere: no such directory; expected the directory of a run or sweep"),
        (
            ["dataset=mnist", "dataset.download=false", "data_dir=none"],
            "dataset=mnist: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
            "t10k-labels-idx1-ubyte not in none/MNIST/raw or none/MNIST, and dataset.download=false; "
            "put these files there, uncompressed or as .gz, or use dataset=digits, which needs no download",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_command_leaves_no_run_directory(tmp_path: Path, overrides: list[str], line: str) -> None:
    ended = dlhw(*overrides, at=tmp_path)
    assert ended == Ended(1, "", line.format(at=tmp_path) + "\n")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "outputs"])


def test_diverging_run_fails_and_reports_the_step(tmp_path: Path) -> None:
    ended = dlhw(*SMALL, "optimizer.lr=1e30", "trainer.epochs=2", at=tmp_path)
    path = only(list(tmp_path.glob("outputs/train/*")))
    assert ended.code == 1
    assert "Traceback" not in ended.err
    content = summary(path)
    assert content["status"] == "failed"
    assert re.fullmatch(
        r"TrainingFailed: loss \S+, penalty 0 at step 2 \(epoch 1, step 2 of 9\): training diverged; .*",
        content["reason"],
    )
    assert ended.lines[-1] == (
        f"{content['reason'].removeprefix('TrainingFailed: ')} (the results so far are in {path})"
    )
    assert ended.lines[-1] in (path / "run.log").read_text()
    assert "metrics.csv" not in files(path)  # no epoch finished


def test_a_mistake_next_to_info_is_one_line(tmp_path: Path) -> None:
    ended = dlhw("--info", "defaults", "model=mpl", at=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert re.fullmatch(r"model=mpl: unknown model \(did you mean mlp\?\); --help lists all \d+\n", ended.err)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job", "--resolve"]], ids=" ".join)
def test_help_and_config_are_printed_without_importing_torch(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLHW_DATA", raising=False)
    ended = Process("-X", "importtime", "-m", "dlhw.train", *arguments, at=tmp_path, cold=True).end()
    assert ended.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in ended.lines}
    assert "dlhw.cli.program" in loaded
    assert loaded.isdisjoint({"torch", "torchvision", "sklearn", "pandas", "numpy", "matplotlib"})
    assert list(tmp_path.iterdir()) == []
    if arguments == ["--help"]:
        shipped = sorted((composition.conf_dir() / "experiment").glob("*.yaml"))
        questions = {file.stem: file.read_text().splitlines()[1].removeprefix("# ") for file in shipped}
        listed = re.findall(r"^  (\w+) +(\S.*\?.*)$", ended.out, re.MULTILINE)
        assert dict(listed) == questions
        assert 'eval "$(dlhw completion)"' in ended.out
        assert re.findall(r"^  dlhw ([\w-]+)  +\S", ended.out, re.MULTILINE) == list(VERBS)
    else:
        assert yaml.safe_load(ended.out) == program.compose()
        assert "${" not in ended.out


@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "dlhw").exists(), reason="the dlhw console script is not installed")
@pytest.mark.parametrize(
    ("typed", "listed"),
    [
        ("experiment=", {f"experiment={path.stem}" for path in (composition.conf_dir() / "experiment").iterdir()}),
        ("optimizer=ad", {"optimizer=adagrad", "optimizer=adam", "optimizer=adamw"}),
        ("trainer.epo", {"trainer.epochs="}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tab_completion_lists_options_and_keys(tmp_path: Path, typed: str, listed: set[str]) -> None:
    line = f"dlhw {typed}"
    ended = subprocess.run(
        [Path(sys.prefix) / "bin" / "dlhw", "-sc", "query=bash"],
        cwd=tmp_path,
        env=environment(COMP_LINE=line, COMP_POINT=str(len(line))),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(ended.stdout.split()) == listed
    assert ended.stderr == ""


@pytest.mark.parametrize("name", ["a=1,b=2", "dé", "a (b)", "it's"])
def test_special_characters_in_paths_need_no_quotes_for_hydra(name: str) -> None:
    assert program.compose(f"output_dir=/tmp/{name}", f"data_dir={name}/x").output_dir == f"/tmp/{name}"


def test_sweep_directory_has_a_directory_per_job_named_by_its_overrides(tmp_path: Path) -> None:
    ended = dlhw("experiment=flooding", "-m", *SMALL, "trainer.epochs=2", "b=0.02,0.10", at=tmp_path)
    assert ended.code == 0
    sweep = only(list(tmp_path.glob("outputs/flooding/*")))
    jobs = {path.name: path for path in sweep.iterdir() if path.is_dir()}
    tables = jobs.pop("tables")
    assert "settings.csv" in files(tables)
    assert {"comparison.png", "sweep.csv", "summary.json"} <= files(sweep)
    assert set(jobs) == {"b=0.02", "b=0.1"}
    for name, path in jobs.items():
        assert files(path) >= RUN_FILES
        b = float(name.removeprefix("b="))
        assert yaml.safe_load((path / "config.yaml").read_text())["regularization"]["flood"] == b
        assert summary(path)["status"] == "finished"
    assert ended.lines[0] == f"2 jobs, in {sweep.relative_to(tmp_path)}"
    first, second = (line for line in ended.lines if line.startswith("job "))
    assert first.startswith("job 1 of 2: b=0.02: val error ")
    assert first.endswith(" left")
    assert second.startswith("job 2 of 2: b=0.1: val error ")


def test_sweep_continues_after_a_failed_job(tmp_path: Path) -> None:
    ended = dlhw("-m", *SMALL, "trainer.epochs=2", "optimizer.lr=0.1,1e35,0.2", "hydra.sweep.dir=here", at=tmp_path)
    assert ended.code == 1
    states = {path.parent.name: summary(path.parent) for path in tmp_path.glob("here/*/summary.json")}
    failed = states.pop("optimizer.lr=1e+35")
    assert {name: state["status"] for name, state in states.items()} == {
        "optimizer.lr=0.1": "finished",
        "optimizer.lr=0.2": "finished",
    }
    assert failed["status"] == "failed"
    assert ended.lines[-1] == f"optimizer.lr=1e+35: failed: {failed['reason']}"
    assert "Traceback" not in ended.err
    assert "Error executing job" not in ended.err


def test_concurrent_sweeps_have_separate_directories(tmp_path: Path) -> None:
    pair = [start("-m", *SMALL, "trainer.epochs=1", "seed=0,1", "name=pair", at=tmp_path) for _ in range(2)]
    assert [process.end().code for process in pair] == [0, 0]
    assert len(list(tmp_path.glob("outputs/pair/*/*/summary.json"))) == 4
