"""TensorBoard, MLflow, wandb and Trackio store what a run writes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlhw import train
from dlhw.loggers.content import LoggedRun, conclusion
from dlhw.loggers.run_loggers import IDENTIFIERS, read_identifiers
from dlhw.loggers.tensorboard import metric_tag
from dlhw.loggers.trackio import Trackio
from dlhw.loggers.wandb import WandB
from dlhw.runtime.progress import Progress
from dlhw.storage import stored
from support.commands import SMALL, dlhw, only
from support.composing import compose, error_message
from support.loggers import events, mlflow_client, scalars, single
from support.run_directories import make_run, make_sweep

pytest.importorskip("tensorboard")
pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries

RUN = [*SMALL, "trainer.epochs=3", "trainer.threads=1", "logger=[tensorboard,mlflow]"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with both loggers; MLflow's database is in the folder above ``outputs``."""
    at = tmp_path_factory.mktemp("logged")
    ended = dlhw(*RUN, "name=tiny", "hydra.run.dir=outputs/run", at=at)
    assert (ended.code, "logger=" in ended.out + ended.err) == (0, False), ended.out + ended.err
    return at / "outputs" / "run"


def rows_of(directory: Path) -> list[dict[str, float]]:
    rows = stored.read_metrics(directory)
    assert rows
    return rows


def assert_tensorboard_has_the_rows(directory: Path) -> None:
    rows, points = rows_of(directory), scalars(directory)
    columns = [column for column in rows[0] if column != "epoch"]
    assert len({metric_tag(column) for column in columns}) == len(columns)
    for column in columns:
        assert points[metric_tag(column)] == [(int(row["epoch"]), single(row[column])) for row in rows]


def mlflow_runs(directory: Path, experiment: str) -> list[Any]:
    client = mlflow_client(directory)
    runs: list[Any] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return runs


def assert_mlflow_has_the_rows(at: Path, identifier: str, directory: Path) -> None:
    rows, client = rows_of(directory), mlflow_client(at)
    for column in rows[0]:
        history = client.get_metric_history(identifier, column)
        assert [(point.step, point.value) for point in history] == [(row["epoch"], row[column]) for row in rows]


def test_tensorboard_has_the_rows_of_metrics_csv(logged: Path) -> None:
    assert_tensorboard_has_the_rows(logged)


def test_tensorboard_has_the_result(logged: Path) -> None:
    best, points = stored.read_summary(logged)["best"], scalars(logged)
    assert points["result/best_epoch"] == [(3, best["epoch"])]
    assert points["result/best_val_error_percent"] == [(3, single(best["val_error_percent"]))]
    assert points["result/best_test_error_percent"] == [(3, single(best["test_error_percent"]))]
    assert b"status: finished" in events(logged).Tensors("result/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_has_the_config_and_hyperparameters(logged: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    reader = events(logged)
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["optimizer.lr"].number_value == LoggedRun(logged).config["optimizer"]["lr"]
    assert values["model.hidden"].string_value == "[8]"
    assert values["experiment"].string_value == "tiny"
    assert not [name for name in values if name.startswith("logger")]
    assert "_hparams_/session_end_info" in reader.summary_metadata
    text = reader.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    shown = OmegaConf.create("\n".join(line.removeprefix("    ") for line in text.splitlines()))
    assert shown == LoggedRun(logged).config


def test_tensorboard_has_the_bytes_of_the_figures(logged: Path) -> None:
    reader = events(logged)
    assert reader.Tags()["images"] == ["figures/curves"]
    (image,) = reader.Images("figures/curves")
    assert image.encoded_image_string == (logged / "curves.png").read_bytes()


def test_mlflow_has_the_rows_of_metrics_csv(logged: Path) -> None:
    assert_mlflow_has_the_rows(logged.parents[1], only(list(read_identifiers(logged).values())), logged)


def test_mlflow_has_hyperparameters_tags_result_and_files(logged: Path) -> None:
    at = logged.parents[1]
    run = only(mlflow_runs(at, "tiny"))
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in LoggedRun(logged).settings.items()}
    tags = {"experiment": "tiny", "seed": "0", "dataset": "digits", "status": "finished"}
    assert run.data.tags.items() >= tags.items()
    summary = stored.read_summary(logged)
    assert run.data.tags["git_revision"] == summary["git_revision"]
    assert run.data.metrics["best_val_error_percent"] == summary["best"]["val_error_percent"]
    client = mlflow_client(at)
    for name in ("config.yaml", "summary.json", "figures/curves.png"):
        path = Path(client.download_artifacts(run.info.run_id, name))
        assert path.read_bytes() == (logged / Path(name).name).read_bytes()


def test_both_know_a_resumed_run_as_one_without_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were not sent before an interruption are sent later, and those computed again are not repeated."""
    monkeypatch.chdir(tmp_path)
    directory, count = Path("outputs/run"), 0
    directory.mkdir(parents=True)

    def stop(self: Progress) -> None:
        nonlocal count
        count += 1
        if count == 2 * 9 + 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train.task(compose(*RUN, "trainer.checkpoint_seconds=0", "logger=mlflow"), directory, (), False)
    first = only(list(read_identifiers(directory).values()))
    assert (mlflow_client(tmp_path).get_run(first).info.status, len(rows_of(directory))) == ("KILLED", 2)
    (directory / "metrics.csv").write_text("".join((directory / "metrics.csv").read_text().splitlines(True)[:2]))
    train.task(compose(f"resume={directory}", "logger=[tensorboard,mlflow]"), directory, (), False)
    assert len(rows_of(directory)) == 3
    assert_tensorboard_has_the_rows(directory)
    assert list(read_identifiers(directory).values()) == [first]
    assert_mlflow_has_the_rows(tmp_path, first, directory)
    assert mlflow_client(tmp_path).get_run(first).info.status == "FINISHED"
    train.task(compose(f"resume={directory}", "trainer.epochs=4"), directory, (), False)
    assert len(rows_of(directory)) == 4
    assert_tensorboard_has_the_rows(directory)
    assert_mlflow_has_the_rows(tmp_path, first, directory)
    assert len(list((directory / "tensorboard").iterdir())) == 1


def test_every_run_of_a_vectorized_sweep_is_logged(tmp_path: Path) -> None:
    ended = dlhw("-m", *RUN, "seed=0,1", "hydra/launcher=vectorized", "hydra.sweep.dir=outputs/levels", at=tmp_path)
    assert ended.code == 0, ended.err
    assert "2 jobs at once" in ended.out + ended.err
    runs = {run.info.run_name: run for run in mlflow_runs(tmp_path, "train")}
    assert set(runs) == {"levels/seed=0", "levels/seed=1"}
    for seed in (0, 1):
        directory = tmp_path / "outputs" / "levels" / f"seed={seed}"
        assert_tensorboard_has_the_rows(directory)
        run = runs[f"levels/seed={seed}"]
        assert_mlflow_has_the_rows(tmp_path, run.info.run_id, directory)
        assert (run.data.tags["sweep"], run.data.tags["seed"]) == ("train/levels", str(seed))


def test_the_figures_and_numbers_of_a_study_are_logged(tmp_path: Path) -> None:
    ended = dlhw("experiment=least_squares_gd", "study.draws=8", "study.iterations=60", "study.rates=12",
                 "logger=tensorboard", "hydra.run.dir=study", at=tmp_path)  # fmt: skip
    directory = tmp_path / "study"
    result = conclusion(directory)
    assert result is not None
    assert ended.code in (0, 1), ended.err
    assert result.figures
    for name, path in result.figures.items():
        assert events(directory).Images(f"figures/{name}")[0].encoded_image_string == path.read_bytes()
    points = scalars(directory)
    assert points == {f"result/{name}": [(0, single(value))] for name, value in result.numbers.items()}


@pytest.mark.parametrize(
    ("column", "tag"),
    [
        ("val_loss", "validation/loss"),
        ("train_error_percent", "train/error_percent"),
        ("test_loss", "test/loss"),
        ("lr", "optimizer/lr"),
        ("weight_norm", "model/weight_norm"),
    ],
)
def test_tags_are_grouped_by_part(column: str, tag: str) -> None:
    assert metric_tag(column) == tag


def test_names_and_groups_of_runs_in_sweeps(tmp_path: Path) -> None:
    job, _ = make_sweep(tmp_path / "levels", {"b=0.1": [1.0, 2.0]})
    confirmed = make_run(tmp_path / "levels" / "confirmation" / "seed=9", "seed=9")
    single_run = make_run(tmp_path / "alone")
    names = {run.name: run.group for run in map(LoggedRun, (job, confirmed, single_run))}
    assert names == {"levels/b=0.1,seed=0": "tiny/levels", "levels/confirmation/seed=9": "tiny/levels", "alone": None}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=tensorbord"], "logger=tensorbord: unknown logger (did you mean tensorboard?); expected one of "
         "mlflow, none, tensorboard, trackio, wandb"),
        (["logger=[mlflow,tensorbord]"], "logger=[mlflow,tensorbord]: unknown logger (did you mean tensorboard?); "
         "expected one of mlflow, none, tensorboard, trackio, wandb"),
        (["logger=mlflow", "logger.mlflow.url=x"],
         "logger.mlflow.url: unknown option of logger=mlflow (did you mean uri?); expected one of uri, experiment"),
        (["logger=mlflow", "logger.mlflow.uri=3"], "logger.mlflow.uri=3: must be a string"),
        (["logger.mlflow.uri=x"], "logger.mlflow.uri: unknown key; logger.mlflow.uri belongs to logger=mlflow"),
        (["logger=mlflow", "logger.mlflow=3"],
         "logger.mlflow=3: must be a mapping of options; expected logger=NAME"),
        (["logger=mlflow,tensorboard"],
         "logger=mlflow,tensorboard: a sweep over several values needs -m; expected logger=[...] for a list"),
    ],
)  # fmt: skip
def test_invalid_loggers_are_one_line(overrides: list[str], message: str) -> None:
    assert error_message(*overrides) == message


def test_a_missing_package_is_one_line_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    ended = dlhw("logger=wandb", at=tmp_path)
    assert ended.lines == ['logger=wandb: needs the package wandb; install it (pip install "dlhw[wandb]")']
    assert (ended.code, list(tmp_path.iterdir())) == (1, [])


class FakeRun:
    """The run of wandb or trackio; records what it gets."""

    def __init__(self, name: str, epoch: int = 0) -> None:
        self.name = name
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {"epoch": epoch} if epoch else {}
        self.finished: object = None

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int | None = None) -> None:
        self.finished = ("finished", exit_code)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, *, key: bool, epoch: int = 0) -> tuple[FakeRun, dict[str, Any]]:
    """Install a module ``wandb`` that records the arguments of ``init`` and knows a key or not."""
    arguments: dict[str, Any] = {}
    run = FakeRun("a run", epoch)

    def init(**given: Any) -> FakeRun:
        arguments.update(given)
        return run

    def login(*, prompt: bool, verify: bool) -> bool:
        assert (prompt, verify) == (False, False)
        return key

    module = SimpleNamespace(init=init, login=login, Settings=dict, Image=lambda path: ("image", path), Error=OSError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run, arguments


def write_all(logger: Any, directory: Path, identifier: str | None = None) -> Any:
    started = logger.start(LoggedRun(directory), identifier)
    logger.rows([row for row in rows_of(directory) if row["epoch"] > started.epochs])
    logger.end(conclusion(directory))
    logger.close()
    return started


def test_wandb_gets_the_run_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(tmp_path / "run", "seed=4", git_revision="abc")
    (directory / "curves.png").write_bytes(b"")
    run, arguments = fake_wandb(monkeypatch, key=False)
    earlier = directory / "wandb" / "offline-run-20260101_000000-id4"
    earlier.mkdir(parents=True)
    started = write_all(WandB(project="p", entity=None, mode="auto"), directory, "id4")
    assert started == ("id4", 0)
    assert not earlier.exists()
    expected = {"project": "p", "id": "id4", "mode": "offline", "resume": "allow", "name": "run", "group": None}
    assert arguments.items() >= expected.items()
    assert arguments["config"]["trainer"]["epochs"] == 3
    assert "logger" not in arguments["config"]
    assert arguments["settings"]["console"] == "off"
    image = (3, {"figures/curves": ("image", str(directory / "curves.png"))})
    assert run.logged == [*((int(row["epoch"]), row) for row in rows_of(directory)), image]
    assert run.summary.items() >= {"best_val_loss": 0.2, "status": "finished", "git_revision": "abc"}.items()
    assert run.finished == ("finished", 0)


@pytest.mark.parametrize(("answers", "mode"), [(True, "online"), (False, "offline")])
def test_wandb_continues_a_run_online_if_the_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool, mode: str
) -> None:
    directory = make_run(tmp_path / "run")
    run, arguments = fake_wandb(monkeypatch, key=True, epoch=2)

    def connect(address: tuple[str, int], timeout: float) -> Any:
        assert address == ("api.wandb.ai", 443)
        if not answers:
            raise TimeoutError
        return open("/dev/null")

    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setattr("socket.create_connection", connect)
    started = write_all(WandB(project="p", entity="e", mode="auto"), directory)
    assert (arguments["mode"], arguments["entity"], started.epochs) == (mode, "e", 2)
    assert [step for step, _ in run.logged] == [3]
    assert started.identifier == arguments["id"]


def test_trackio_gets_the_run_and_replaces_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(tmp_path / "run")
    (directory / "figures").mkdir()
    (directory / "figures" / "a.png").write_bytes(b"")
    deleted: list[str] = []

    class Stored(FakeRun):
        def delete(self) -> None:
            deleted.append(self.name)

    runs = [Stored("tiny/run"), Stored("other")]
    arguments: dict[str, Any] = {}

    def init(project: str, *, name: str, **given: Any) -> FakeRun:
        arguments.update(given, project=project)
        runs.append(Stored(name))
        return runs[-1]

    module = SimpleNamespace(
        init=init, Image=lambda path: path, Api=lambda: SimpleNamespace(runs=lambda project: list(runs))
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    assert write_all(Trackio(project="p"), directory) == ("tiny/run", 0)
    assert deleted == []
    assert write_all(Trackio(project="p"), directory, "tiny/run") == ("tiny/run", 0)
    assert deleted == ["tiny/run", "tiny/run"]
    assert arguments.items() >= {"project": "p", "group": None, "auto_log_cpu": False}.items()
    assert arguments["config"]["trainer.epochs"] == 3
    *rows, (step, result) = runs[-1].logged
    assert rows == [(int(row["epoch"]), row) for row in rows_of(directory)]
    assert (step, result["best_val_loss"], result["status"]) == (3, 0.2, "finished")
    assert result["figures/a"] == str(directory / "figures" / "a.png")
    assert runs[-1].finished == ("finished", None)


def test_a_damaged_file_of_identifiers_is_one_line(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"a": 1}', "[" * 3000):
        (tmp_path / IDENTIFIERS).write_text(text)
        with pytest.raises(stored.Unreadable, match=r"loggers.json: .*; restore it"):
            read_identifiers(tmp_path)
    assert read_identifiers(tmp_path / "nothing") == {}
