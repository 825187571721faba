"""A logger that fails or hangs does not change a run, and what is missing is exported later."""

from __future__ import annotations

import json
import os
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from dlhw import train
from dlhw.cli import lifecycle
from dlhw.errors import UsageError
from dlhw.loggers import run_loggers
from dlhw.loggers.run_loggers import read_identifiers
from dlhw.storage import stored
from dlhw.storage.identity import checkpoint_identity, continues_run
from dlhw.storage.record import Record
from support.commands import SMALL, dlhw
from support.composing import compose
from support.loggers import Recorder
from support.run_directories import write_config

RUN = [*SMALL, "trainer.epochs=2", "trainer.threads=1"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Forget earlier loggers, and end the calls that hang."""
    Recorder.made.clear()
    run_loggers._thread.cache_clear()


def with_recorder(*overrides: str, **options: Any) -> DictConfig:
    """Compose a run with a logger that records its calls."""
    cfg = compose(*RUN, *overrides)
    with open_dict(cfg):
        cfg.logger = {"test": {"_target_": "support.loggers.Recorder", **options}}
    return cfg


def trained(directory: Path, cfg: DictConfig) -> Path:
    directory.mkdir(exist_ok=True)
    train.task(cfg, directory, (), False)
    return directory


@pytest.fixture(scope="module")
def unlogged(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The metrics of the run without a logger."""
    return (trained(tmp_path_factory.mktemp("unlogged"), compose(*RUN)) / "metrics.csv").read_bytes()


def test_a_logger_gets_the_rows_of_metrics_csv_and_changes_nothing(tmp_path: Path, unlogged: bytes) -> None:
    directory = trained(tmp_path / "run", with_recorder())
    (logger,) = (made for made in Recorder.made if made.calls)
    assert (directory / "metrics.csv").read_bytes() == unlogged
    assert logger.logged == stored.read_metrics(directory)
    assert (logger.calls[0], logger.calls[-2:]) == ("start", ["end", "close"])
    assert logger.conclusion is not None
    assert logger.conclusion.figures == {"curves": directory / "curves.png"}
    assert read_identifiers(directory) == {"test here": "an id"}


@pytest.mark.parametrize("broken", ["start", "rows", "end", "close"])
def test_a_logger_that_fails_is_off_with_one_warning(
    tmp_path: Path, unlogged: bytes, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = trained(tmp_path / "run", with_recorder(broken=broken))
    assert (directory / "metrics.csv").read_bytes() == unlogged
    assert stored.read_summary(directory)["status"] == "finished"
    command = f"dlhw export {directory} --to test"
    warning = f"logger=test: off for this run (SystemExit: no space left); write the rest with: {command}"
    assert [text for text in caplog.messages if "logger" in text] == [warning]
    (logger,) = (made for made in Recorder.made if made.calls)
    assert logger.calls[-2:] == ([broken, "close"] if broken != "close" else ["end", "close"])


def test_a_logger_that_hangs_is_abandoned(
    tmp_path: Path, unlogged: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_loggers, "PATIENCE", 0.1)
    monkeypatch.setattr(Recorder, "released", threading.Event())
    for name, reason in (
        ("first", "a call has not returned for 0.1 seconds"),
        ("second", "an earlier call has not returned"),
    ):
        directory = trained(tmp_path / name, with_recorder(broken="start", hangs=True))
        assert (directory / "metrics.csv").read_bytes() == unlogged
        warnings = [text for text in caplog.messages if "logger" in text]
        assert [text.partition("; ")[0] for text in warnings] == [f"logger=test: off for this run ({reason})"]
        caplog.clear()
    Recorder.released.set()


def test_only_the_first_process_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[object] = []
    record = Record(tmp_path)
    monkeypatch.setattr(record, "follow", followed.append)
    write_config(tmp_path)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    lifecycle.attach_loggers(with_recorder(), record)
    assert followed == []
    monkeypatch.setenv("RANK", "0")
    lifecycle.attach_loggers(with_recorder(), record)
    assert len(followed) == 1


def test_the_logger_is_not_part_of_the_identity_of_a_run(tmp_path: Path) -> None:
    directory = trained(tmp_path / "run", compose(*RUN))
    assert continues_run(with_recorder(), directory)
    assert checkpoint_identity(with_recorder()) == checkpoint_identity(compose(*RUN))


def test_a_run_of_a_version_without_loggers_is_resumed_with_one(tmp_path: Path) -> None:
    directory = trained(tmp_path / "run", compose(*RUN))
    content = OmegaConf.load(directory / "config.yaml")
    del content["logger"]
    OmegaConf.save(content, directory / "config.yaml")
    assert "logger" not in compose(f"resume={directory}", "trainer.epochs=3")
    cfg = compose(f"resume={directory}", "trainer.epochs=4", "logger=mlflow", "logger.mlflow.uri=x")
    assert OmegaConf.to_container(cfg.logger, resolve=True) == {
        "mlflow": {"_target_": "dlhw.loggers.mlflow.MLflow", "uri": "x", "experiment": "train"}
    }
    train.task(compose(f"resume={directory}", "trainer.epochs=3"), directory, (), False)
    rows = stored.read_metrics(directory)
    assert rows is not None
    assert len(rows) == 3


def test_a_resumed_run_keeps_its_loggers_unless_others_are_chosen(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    cfg = compose(*RUN, "logger=[mlflow,trackio]")
    Record(directory).write_config(OmegaConf.to_yaml(cfg, resolve=True), new=True)
    assert list(compose(f"resume={directory}").logger) == ["mlflow", "trackio"]
    assert list(compose(f"resume={directory}", "logger=wandb").logger) == ["wandb"]
    assert list(compose(f"resume={directory}", "logger=none").logger) == []


def test_a_resumed_sweep_may_have_another_logger(tmp_path: Path) -> None:
    lines = ("-m", *RUN, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=levels", "logger=mlflow")
    first = dlhw(*lines, "logger.mlflow.uri=sqlite:///other.db", "+hydra.launcher.x=1", at=tmp_path)
    assert first.code == 1
    assert dlhw(*lines[:-1], at=tmp_path).code == 0
    (tmp_path / "levels" / "seed=1" / "summary.json").unlink()
    ended = dlhw("resume=levels", "logger=tensorboard", at=tmp_path)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "levels" / "seed=0" / "tensorboard").exists()
    assert (tmp_path / "levels" / "seed=1" / "tensorboard").is_dir()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_config_whose_logger_is_not_a_mapping_is_unreadable(tmp_path: Path) -> None:
    write_config(tmp_path)
    content = json.loads((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(json.dumps(content | {"logger": [1]}))
    with pytest.raises(UsageError, match="logger must be a mapping"):
        stored.read_config(tmp_path)


def test_a_password_of_mlflow_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    result = dlhw(*RUN, "logger=mlflow", at=tmp_path)
    assert result.code == 0
    assert [line.startswith("logger=mlflow: off for this run (ConnectionRefusedError") for line in result.lines].count(
        True
    )
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts
    assert not [text for text in texts if b"s3cret" in text]
    given = dlhw(*RUN, "logger=mlflow", "logger.mlflow.uri=http://me:s3cret@127.0.0.1:9", at=tmp_path)
    assert (given.code, len(given.lines)) == (1, 1)
    assert given.lines[0].startswith("logger.mlflow.uri: must not contain a password")


def test_a_server_that_fails_later_does_not_get_the_password_into_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections and closes them, so the error is that of MLflow."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@127.0.0.1:{server.server_address[1]}")
        result = dlhw(*RUN, "logger=mlflow", at=tmp_path)
        server.shutdown()
    assert os.environ.get("MLFLOW_TRACKING_PASSWORD") == "s3cret"
    assert "logger=mlflow: off for this run (" in result.err
    assert "s3cret" not in result.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
