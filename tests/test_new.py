"""``dlhw new``: the folder trains and passes its test; copies of experiments compose; one line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode
from omegaconf import DictConfig

from dlhw import new, train
from dlhw.cli import composition
from dlhw.errors import UsageError
from dlhw.storage.identity import without_hydra
from support.commands import dlhw, summary
from support.config_files import CONF, EXPERIMENTS, option_names
from support.marks import slow
from support.processes import Process, environment

FILES = {
    "README.md",
    "dataset/NAME.yaml",
    "experiment/NAME.yaml",
    "model/NAME.yaml",
    "NAME_data.py",
    "NAME_model.py",
    "test_NAME.py",
}
UNTRAINED = {*option_names("study"), "mask_samples", "cifar_samples"}
"""Experiments that train nothing."""


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folder_has_all_files_with_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new.main(["torch"])
    assert files(tmp_path / "torch") == {name.replace("NAME", "torch") for name in FILES}
    text = "".join(path.read_text() for path in (tmp_path / "torch").rglob("*.*"))
    assert not re.findall(r"(?<![a-z])mine(?![a-z])", text)
    assert capsys.readouterr().out == "torch: written. To train:\n\n    dlhw --config-dir torch experiment=torch\n\n"


def test_the_folder_trains(tmp_path: Path) -> None:
    new.main(["spiral_1"])
    ended = dlhw("--config-dir", "spiral_1", "experiment=spiral_1", "trainer.device=cpu", at=tmp_path)
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "outputs" / "spiral_1").iterdir()
    assert summary(run)["best"]["val_error_percent"] < 20  # 50 % without training
    assert summary(run)["data"]["classes"] == ["left", "right"]


@pytest.mark.slow
def test_the_test_in_the_folder_passes(tmp_path: Path) -> None:
    new.main(["mine"])
    env = environment() | {"PYTHONPATH": str(Path(new.__file__).parents[1])}
    ended = Process("-m", "pytest", "-q", "-p", "no:cacheprovider", "mine", at=tmp_path, env=env, cold=True).end()
    assert ended.code == 0, ended.out
    assert "1 passed" in ended.out


def _composed(override: str, *, folder: Path | None = None) -> DictConfig:
    """Return the config of a command line, with ``--config-dir FOLDER`` if it is given."""
    composition.prepare()
    search_path = create_config_search_path(str(CONF))
    if folder is not None:
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return composition.Loader(search_path).load_configuration("train", [override], RunMode.RUN)


TRAINED = [name for name in EXPERIMENTS if name not in UNTRAINED]


@pytest.mark.parametrize("source", [name if name == "flooding" else slow(name) for name in TRAINED])
def test_the_copy_of_an_experiment_composes(tmp_path: Path, source: str) -> None:
    new.main(["copied", "--from", source])
    assert files(tmp_path / "copied") == {"experiment/copied.yaml"}
    configs = [_composed(f"experiment={source}"), _composed("experiment=copied", folder=tmp_path / "copied")]
    configs = [without_hydra(cfg) for cfg in configs]
    train.check(configs[1], ())
    assert configs[1].pop("name") == "copied"
    assert configs[0].pop("name") == source
    assert configs[0] == configs[1]


def test_the_command_in_a_copy_is_its_own(tmp_path: Path) -> None:
    new.main(["copied", "--from", "flooding"])
    text = (tmp_path / "copied" / "experiment" / "copied.yaml").read_text()
    assert text.startswith("# @package _global_\n# Copied from experiment=flooding, whose comments follow.\n")
    assert "\n#   dlhw --config-dir copied experiment=copied b=0.05\n" in text
    assert "\nname: copied\n" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1st"], "1st: expected a name of at most 50 letters, digits and _ that starts with a letter"),
        (["../up"], "../up: expected a name of at most 50 letters, digits and _ that starts with a letter"),
        (["a" * 51], f"{'a' * 51}: expected a name of at most 50 letters, digits and _ that starts with a letter"),
        (["taken"], "taken: exists already; choose another name"),
        (["mlp"], "mlp: dlhw has model=mlp; choose another name"),
        (["boston"], "boston: dlhw has experiment=boston and dataset=boston; choose another name"),
        (
            ["mine", "--from", "floding"],
            f"--from floding: no such experiment (did you mean flooding?); expected one of {len(EXPERIMENTS)} names",
        ),
        (["mine", "--from", "../x"], f"--from ../x: no such experiment; expected one of {len(EXPERIMENTS)} names"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "taken").mkdir()
    name, source = arguments[0], arguments[-1] if "--from" in arguments else None
    with pytest.raises(UsageError) as caught:
        new.write(name, source)
    assert str(caught.value) == message
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_a_mistake_ends_the_program_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        new.main(["1st"])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("1st: expected a name")


def test_importing_the_command_is_quick() -> None:
    code = "import sys, dlhw.new; print('torch' in sys.modules)"
    assert Process("-c", code, at=Path.cwd(), cold=True).end().out == "False\n"


@pytest.mark.parametrize("name", ["debug", "null", "true", "yes", "off"])
def test_names_with_another_meaning_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{name}: has another meaning in config files; choose another name$"):
        new.write(name)
    assert not list(tmp_path.iterdir())
