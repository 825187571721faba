"""The command line by running it: what a run leaves, exit codes, messages, stopping and going on.

Where it makes no difference, ``main`` runs in this process, which saves the seconds that importing torch takes.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from dlhw.cli import composition, program
from dlhw.errors import UsageError
from dlhw.runs.record import Record, claim_directory
from support.commands import RUN, SMALL, Ended, dlhw, files, only, start, summary
from support.processes import Process, environment

SHORT = (*SMALL, "trainer.epochs=2", "trainer.checkpoint_seconds=1000")  # no checkpoint before the last one
LONG = (*SMALL, "trainer.epochs=6", "trainer.checkpoint_seconds=0")
STEPS_TO_STOP = 20  # of 9 per epoch: in the middle of the third one
WAITING = f"""
import os, time
from dlhw import train
from dlhw.runtime.progress import Progress

steps, step = iter(range(1, 10_000)), Progress.step

def waiting(progress):
    step(progress)
    if next(steps) == {STEPS_TO_STOP}:
        os.write(1, b"waiting")
        time.sleep(10_000)

Progress.step = waiting
train.main()
"""
"""The program, which waits for a signal after so many steps."""
FINISHED = "already finished after 2 epochs; a larger trainer.epochs continues training"
MEASURED = {f"{part}_{metric}" for part in ("train", "val", "test") for metric in ("loss", "error_percent", "accuracy")}


# --- a run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    ended: Ended
    path: Path
    root: Path


@pytest.fixture(autouse=True, scope="module")
def no_data_folder() -> Iterator[None]:
    """The folder of datasets is the default one, wherever these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DLHW_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of two epochs in a process of its own; read it, copy it, do not change it."""
    root = tmp_path_factory.mktemp("finished")
    ended = start(*SHORT, at=root).end()
    return Finished(ended, only(list(root.glob("outputs/train/*"))), root)


def test_run_leaves_the_files_of_the_contract_in_its_directory(finished: Finished) -> None:
    assert finished.ended.code == 0
    assert files(finished.path) >= RUN
    assert "previous.pt" not in files(finished.path)
    assert all(name.startswith(f"outputs/train/{finished.path.name}/") for name in files(finished.root))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", finished.path.name)


def test_run_says_what_it_does_and_draws_no_bar_without_a_terminal(finished: Finished) -> None:
    ended = finished.ended
    assert ended.out == ""
    assert "\x1b" not in ended.err
    assert "\r" not in ended.err
    assert ended.lines[0] == f"train: mlp on digits, in {finished.path}"
    assert [line.split("  ")[0] for line in ended.lines[1:-1]] == ["epoch 1/2", "epoch 2/2"]
    best = summary(finished.path)["best"]
    assert ended.lines[-1] == (
        f"all epochs done; best validation error {best['val_error_percent']:.2f} % at epoch {best['epoch']}, "
        f"test error at this epoch {best['test_error_percent']:.2f} %"
    )
    logged = [line.split(" ", 3)[3] for line in (finished.path / "run.log").read_text().splitlines()]
    assert logged == ended.lines


def test_summary_tells_what_came_out_and_from_what(finished: Finished) -> None:
    content = summary(finished.path)
    with (finished.path / "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (
        set(rows[0])
        == {"epoch", "step", "lr", "train_objective", "train_penalty", "weight_norm", "near_zero_percent"} | MEASURED
    )
    assert content["status"] == "finished"
    assert content["stopped"] == "epochs"
    assert content["final"] == pytest.approx(rows[-1], rel=1e-9)
    assert content["best"] == pytest.approx(min(rows, key=lambda row: row[content["monitor"]]), rel=1e-9)
    assert content["parameters"] == (64 + 1) * 8 + (8 + 1) * 10
    assert content["seed"] == 0
    assert content["device"] == "cpu"
    assert content["experiment"] == "train"
    assert content["data"]["name"] == "digits"
    assert [content["data"][part] for part in ("train", "val", "test")] == [1132, 283, 382]
    assert re.fullmatch("[0-9a-f]{64}", content["data"]["sha256"])
    assert shlex.split(content["command"])[-len(SHORT) :] == list(SHORT)
    assert content["versions"].keys() == {"dlhw", "torch", "python"}
    assert content["seconds"] > 0
    assert content.keys() >= {"git_revision", "seconds_per_epoch", "processor", "threads"}


def test_config_is_kept_resolved(finished: Finished) -> None:
    stored = yaml.safe_load((finished.path / "config.yaml").read_text())
    expected = program.compose(*SHORT)
    expected.data_dir = stored["data_dir"]
    assert stored == expected
    assert Path(stored["data_dir"]).is_absolute()  # the run may be resumed from another folder
    assert "${" not in (finished.path / "config.yaml").read_text()


def test_weights_are_readable_without_running_code(finished: Finished) -> None:
    best, last = (torch.load(finished.path / name, weights_only=True) for name in ("best.pt", "last.pt"))
    assert best["epoch"] == summary(finished.path)["best"]["epoch"]
    assert [row["epoch"] for row in last["rows"]] == [1, 2]


def test_equal_runs_have_equal_metrics(finished: Finished, tmp_path: Path) -> None:
    assert dlhw(*SHORT, "hydra.run.dir=again", at=tmp_path).code == 0
    again, first = ((path / "metrics.csv").read_bytes() for path in (tmp_path / "again", finished.path))
    assert again == first


# --- mistakes ---------------------------------------------------------------------------------------------


def test_mistake_ends_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    ended = start("optimizer.lr=-1", at=tmp_path).end()
    assert ended == Ended(1, "", "optimizer.lr=-1: must be greater than or equal to 0\n")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "outputs"])


def test_full_error_shows_where_a_mistake_came_from(tmp_path: Path) -> None:
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
        (["seed=-1"], "seed=-1: must be a whole number, 0 or greater"),
        (["resume=nowhere"], "resume={at}/nowhere: not a run directory (it has no config.yaml)"),
        (
            ["dataset=mnist", "dataset.download=false", "data_dir=none"],
            "dataset=mnist: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
            "t10k-labels-idx1-ubyte not in none/MNIST/raw or none/MNIST, and dataset.download=false; "
            "put these files there, uncompressed or as .gz, or use dataset=digits, which needs no download",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_mistake_leaves_a_run_behind(tmp_path: Path, overrides: list[str], line: str) -> None:
    ended = dlhw(*overrides, at=tmp_path)
    assert ended == Ended(1, "", line.format(at=tmp_path) + "\n")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "outputs"])


def test_diverging_run_fails_and_names_the_step(tmp_path: Path) -> None:
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
    assert "metrics.csv" not in files(path)  # no epoch was finished


# --- help, configs and completion -------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job", "--resolve"]], ids=" ".join)
def test_asking_about_configs_loads_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
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
        assert 'eval "$(dlhw -sc install=bash)"' in ended.out
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
def test_tab_completes_options_and_keys(tmp_path: Path, typed: str, listed: set[str]) -> None:
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


# --- directories ------------------------------------------------------------------------------------------


def test_a_run_is_never_overwritten(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "here")
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    ended = dlhw(*SMALL, "hydra.run.dir=here", at=tmp_path)
    assert ended == Ended(
        1,
        "",
        "here: already exists, and runs are never overwritten; choose another directory, or use resume=here\n",
    )
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before


def claimed_at_once(claim: Callable[[], Path], times: int) -> list[Path | UsageError]:
    """What ``times`` threads that start together get."""
    got: list[Path | UsageError] = []
    together = threading.Barrier(times)

    def one() -> None:
        together.wait()
        try:
            got.append(claim())
        except UsageError as error:
            got.append(error)

    threads = [threading.Thread(target=one) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_runs_started_in_the_same_moment_get_directories_of_their_own(tmp_path: Path) -> None:
    wanted = tmp_path / "outputs" / "train" / "now"
    got = claimed_at_once(lambda: claim_directory(wanted, exact=False), 8)
    expected = {wanted, *(wanted.with_name(f"now-{number}") for number in range(2, 9))}
    assert set(got) == expected
    assert set(wanted.parent.iterdir()) == expected


def test_sweep_makes_one_directory_with_one_for_each_job_named_by_what_varies(tmp_path: Path) -> None:
    ended = dlhw("experiment=flooding", "-m", *SHORT, "b=0.02,0.10", at=tmp_path)
    assert ended.code == 0
    sweep = only(list(tmp_path.glob("outputs/flooding/*")))
    jobs = {path.name: path for path in sweep.iterdir() if path.is_dir()}
    tables = jobs.pop("tables")
    assert "settings.csv" in files(tables)
    assert {"comparison.png", "sweep.csv", "summary.json"} <= files(sweep)
    assert set(jobs) == {"b=0.02", "b=0.1"}
    for name, path in jobs.items():
        assert files(path) >= RUN
        b = float(name.removeprefix("b="))
        assert yaml.safe_load((path / "config.yaml").read_text())["regularization"]["flood"] == b
        assert summary(path)["status"] == "finished"
    assert ended.lines[0] == f"2 jobs, in {sweep.relative_to(tmp_path)}"
    assert [line for line in ended.lines if line.startswith("job ")] == ["job 1 of 2: b=0.02", "job 2 of 2: b=0.1"]


def test_sweep_goes_on_past_a_job_that_fails(tmp_path: Path) -> None:
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


# --- stopping and going on --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped:
    ended: Ended
    path: Path
    rows: int
    files: set[str]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[signal.Signals, Stopped]]:
    """Runs of LONG that got a signal in their third epoch."""
    root = tmp_path_factory.mktemp("stopped")
    processes = {
        sent: Process("-c", WAITING, *LONG, f"hydra.run.dir={sent.name}", at=root)
        for sent in (signal.SIGTERM, signal.SIGINT)
    }
    result = {}
    try:
        for sent, process in processes.items():
            process.until(lambda process=process: process.out)
            process.send_signal(sent)
        for sent, process in processes.items():
            ended, path = process.end(), root / sent.name
            rows = len((path / "metrics.csv").read_text().splitlines()) - 1
            result[sent] = Stopped(ended, path, rows, files(path))
    finally:
        for process in processes.values():
            process.kill()
    return result


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    assert dlhw(*LONG, "hydra.run.dir=run", at=root).code == 0
    return root / "run"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_run_says_how_to_go_on_and_then_finishes_as_if_nothing_had_been(
    stopped: dict[signal.Signals, Stopped], uninterrupted: Path, sent: signal.Signals, code: int
) -> None:
    run = stopped[sent]
    assert run.ended.code == code
    assert run.ended.lines[-1] == f"interrupted; resume with resume={run.path}"
    assert "Traceback" not in run.ended.err
    assert run.rows == 2
    assert "summary.json" not in run.files

    ended = dlhw(f"resume={run.path}", at=run.path.parent)
    assert ended.code == 0, ended.err
    assert summary(run.path)["status"] == "finished"
    assert files(run.path) >= RUN
    assert (run.path / "metrics.csv").read_bytes() == (uninterrupted / "metrics.csv").read_bytes()
    for weights in ("best.pt", "last.pt"):
        resumed, straight = (
            torch.load(path / weights, weights_only=True)["model"] for path in (run.path, uninterrupted)
        )
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_finished_run_is_not_resumed(finished: Finished, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    before = {file: (path / file).read_bytes() for file in files(path)}
    ended = dlhw("resume=run", at=tmp_path)
    assert ended == Ended(
        1, "", f"resume={path}: already finished after 2 epochs; a larger trainer.epochs continues training\n"
    )
    assert {file: (path / file).read_bytes() for file in files(path)} == before


def test_more_epochs_train_on_to_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    assert dlhw("resume=run", "trainer.epochs=5", at=tmp_path).code == 0
    assert dlhw(*SMALL, "trainer.epochs=5", "hydra.run.dir=straight", at=tmp_path).code == 0
    assert summary(path)["final"]["epoch"] == 5
    resumed, straight = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("run", "straight"))
    assert resumed == straight


def test_run_stopped_while_training_on_remembers_how_far_it_was_to_go(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    append = Record.append

    def append_until_interrupted(record: Record, row: dict[str, float], *, seconds: float) -> None:
        append(record, row, seconds=seconds)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "append", append_until_interrupted)
        assert dlhw("resume=run", "trainer.epochs=5", at=tmp_path).code == 130
    assert yaml.safe_load((path / "config.yaml").read_text())["trainer"]["epochs"] == 5
    assert dlhw("resume=run", at=tmp_path).code == 0
    assert summary(path)["final"]["epoch"] == 5


def test_resume_of_a_finished_run_is_refused_by_a_process_of_its_own(finished: Finished) -> None:
    """Hydra composes twice in a real process, which the other tests of resume do not see."""
    before = {file: file.read_bytes() for file in finished.path.rglob("*") if file.is_file()}
    ended = start(f"resume={finished.path}", at=finished.path.parent).end()
    assert ended.code == 1
    assert ended.err == f"resume={finished.path}: {FINISHED}\n"
    assert {file: file.read_bytes() for file in finished.path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["a=1,b=2", "dé", "a (b)", "it's"])
def test_paths_need_no_quotes_of_hydras(name: str) -> None:
    assert program.compose(f"output_dir=/tmp/{name}", f"data_dir={name}/x").output_dir == f"/tmp/{name}"


def test_two_sweeps_at_once_have_a_directory_each(tmp_path: Path) -> None:
    pair = [start("-m", *SMALL, "trainer.epochs=1", "seed=0,1", "name=pair", at=tmp_path) for _ in range(2)]
    assert [process.end().code for process in pair] == [0, 0]
    assert len(list(tmp_path.glob("outputs/pair/*/*/summary.json"))) == 4
