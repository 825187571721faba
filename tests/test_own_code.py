"""Models, datasets and losses from the user's own modules: each mistake is one line with the file and line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dlhw.cli import assembly, build, own_code
from dlhw.errors import UsageError
from support.composing import compose
from support.processes import Ended, Process

CODE = """\
from __future__ import annotations
from typing import TYPE_CHECKING
import torch
from torch import nn
if TYPE_CHECKING:
    from somewhere import Nothing
NUMBER = 3


class Network(nn.Module):
    def __init__(self, shape, outputs, width: Nothing = 64):
        super().__init__()
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))
        self.layer = nn.Linear(64, outputs)

    def forward(self, x):
        self.calls += 1
        self.total += 1
        torch.rand(1)
        return self.layer(x.flatten(1))


class Three(Network):
    def __init__(self, shape, outputs):
        super().__init__(shape, 3)


class Narrow(Network):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.layer = nn.Linear(63, outputs)


class Pair(Network):
    def forward(self, x):
        return x, x


class Detached(Network):
    def forward(self, x):
        return super().forward(x).detach()


class Quits(Network):
    def forward(self, x):
        exit(0)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Broken(nn.Module):
    def __init__(self, shape, outputs):
        undefined_name


class NoParameters(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()


def function(shape, outputs):
    return lambda x: x


def tensors(data_dir, seed):
    return torch.utils.data.TensorDataset(torch.zeros(5, 64))


def leaves():
    raise SystemExit(0)


def few_labels(seed):
    import dlhw
    return dlhw.from_arrays(torch.zeros(5, 64), [0, 1], seed=seed)


def bits():
    import dlhw
    return dlhw.from_arrays(torch.eye(20), torch.arange(20) % 2, seed=0, name="bits")


def any_arguments(**arguments):
    import dlhw
    names = sorted(arguments)
    return dlhw.from_arrays(torch.eye(20), torch.arange(20) % 2, seed=arguments["seed"], about={"arguments": names})


def labels_from_1(data_dir, seed):
    from dlhw.data.digits import digits
    from dlhw.data.tensors import Split
    data = digits(data_dir=data_dir, seed=seed, mean=0.3, std=0.4, validation_fraction=0.2)
    parts = {name: Split(part.x, part.y + 1) for name, part in data.parts.items()}
    return data.with_parts(parts)


def loss_per_sample(input, target):
    return nn.functional.cross_entropy(input, target, reduction="none")


def failing_loss(input, target):
    return 1 / 0
"""
NO_OPTIONS = {
    "model": ["~model.hidden", "~model.activation", "~model.dropout", "~model.batch_norm"],
    "dataset": ["~dataset.mean", "~dataset.std", "~dataset.validation_fraction"],
    "loss": ["~loss.label_smoothing"],
}
"""Overrides that remove the options of the default choice of each group."""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of own modules that can be imported."""
    (tmp_path / "own_networks.py").write_text(CODE)
    (tmp_path / "own_failing.py").write_text("import torch\nraise KeyError('no such thing')\n")
    (tmp_path / "own_syntax.py").write_text("import torch\ndef f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    build._located.cache_clear()
    yield tmp_path
    build._located.cache_clear()
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def parts_with(group: str, target: str) -> assembly.Parts:
    overrides = [f"{group}._target_={target}", *NO_OPTIONS[group]]
    return assembly.assemble(compose("dataset=digits", "trainer.device=cpu", *overrides))


def line_of(text: str) -> int:
    """Return the number of the line of CODE that contains this text."""
    return next(number for number, line in enumerate(CODE.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("target", "message", "place"),
    [
        ("Three", r"returns shape \(2, 3\) for 2 samples of shape \(1, 8, 8\); .* of shape \(2, 10\)", "def forward"),
        ("Narrow", r"fails for samples of shape \(1, 8, 8\): RuntimeError: .*2x64 and 63x10", "self.layer(x"),
        ("Pair", "returns a tuple for 2 samples", None),
        ("Detached", r"returns a tensor without gradients \(detach, .*\) for 2 samples", None),
        ("Quits", r"fails for samples of shape \(1, 8, 8\): SystemExit: 0", "        exit(0)"),
        ("Broken", "NameError: name 'undefined_name' is not defined", "        undefined_name"),
        ("NoParameters", "has no parameters to train", "class NoParameters"),
        ("function", "returns a function; expected a torch.nn.Module", "def function"),
    ],
)
def test_mistakes_in_a_model_are_one_line(modules: Path, target: str, message: str, place: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parts_with("model", f"own_networks.{target}")
    line = str(caught.value)
    assert re.match(rf"model={target} \(own_networks\.{target}\): {message}", line), line
    assert "\n" not in line
    assert line.endswith(f"({modules / 'own_networks.py'}:{line_of(place)})" if place else ")"), line


@pytest.mark.parametrize(
    ("group", "target", "message"),
    [
        ("dataset", "tensors", r"returns a TensorDataset; expected a Dataset, as dlhw\.from_arrays"),
        ("dataset", "leaves", "SystemExit: 0"),
        ("dataset", "few_labels", r"5 samples in train, but 2 labels"),
        ("dataset", "labels_from_1", r"train has labels of torch.int64 from 1 to 10; expected torch.int64 from 0 to 9"),
        ("loss", "loss_per_sample", r"returns shape \(2,\) for 2 samples; expected a tensor with one number"),
        ("loss", "failing_loss", r"ZeroDivisionError: division by zero"),
    ],
)
def test_mistakes_in_a_dataset_or_loss_are_one_line(group: str, target: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"{group}=\w+ \(own_networks\.{target}\): {message}.*own_networks\.py:\d+"):
        parts_with(group, f"own_networks.{target}")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_networks.NUMBER", "Expected a callable target, got '3'"),
        ("own_networks.nothing", "own_networks has no nothing; expected one of "),
        ("own_networks.NoParameter", "own_networks has no NoParameter .did you mean NoParameters"),
        ("dlhw.models.dens.mlp", r"dlhw\.models has no dens \(did you mean dense\?\); expected one of "),
        ("own_failing.Network", r"KeyError: 'no such thing', .*own_failing\.py:2"),
        ("own_syntax.Network", r"invalid syntax, .*own_syntax\.py:2"),
        ("own_nowhere.Network", r"no module own_nowhere; expected MODULE\.NAME, with own_nowhere\.py in the "),
        ("builtins.dict", "no signature found for builtin type <class 'dict'>"),
    ],
)
def test_a_target_that_cannot_be_used_is_one_line(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"model\._target_={target}: cannot be used \(.*{message}"):
        parts_with("model", target)


def test_a_model_without_shape_and_outputs_is_built() -> None:
    parts = parts_with("model", "own_networks.Fixed")
    assert sum(parameter.numel() for parameter in parts.model.parameters()) == 650


@pytest.mark.parametrize(("target", "about"), [("bits", {}), ("any_arguments", {"arguments": ["data_dir", "seed"]})])
def test_a_dataset_gets_only_the_arguments_that_it_takes(target: str, about: dict[str, list[str]]) -> None:
    data = parts_with("dataset", f"own_networks.{target}").data
    assert (data.shape, dict(data.about)) == ((20,), about)


COMMAND_LINE = "import sys; sys.path[:] = [path for path in sys.path if path]; from dlhw.train import main; main()"
"""Starts the command line as a console script does: without the working directory in ``sys.path``."""
OWN = ("--config-dir", "mine", "experiment=mine")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A working directory with config files in the folder ``mine``, and the modules that they name beside it."""
    files = {
        "mycode.py": "from own_network import Network\n",
        "mine/own_network.py": CODE,
        "mine/model/mine.yaml": "_target_: mycode.Network\nwidth: 8\n",
        "mine/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /model: mine\nname: mine\n"
        "trainer:\n  epochs: 1\n  steps_per_epoch: 2\n  device: cpu\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def console_script(*words: str, at: Path) -> Ended:
    return Process("-c", COMMAND_LINE, *words, at=at, cold=True).end()


@pytest.mark.slow
def test_modules_are_found_in_the_working_directory_and_the_config_folder(own_folder: Path) -> None:
    ended = console_script(*OWN, at=own_folder)
    assert ended.code == 0, ended.err
    (run,) = (own_folder / "outputs" / "mine").iterdir()
    elsewhere = own_folder / "elsewhere"
    elsewhere.mkdir()
    read = f"import dlhw; print(type(dlhw.load_run({str(run)!r}).model()).__name__)"
    ended = Process("-c", read, at=elsewhere, cold=True).end()
    assert (ended.code, ended.out) == (0, "Network\n"), ended.err
    ended = console_script(f"resume={run}", "trainer.epochs=2", at=elsewhere)
    assert ended.code == 0, ended.err
    assert len((run / "metrics.csv").read_text().splitlines()) == 3  # header and two epochs


@pytest.mark.thorough
def test_modules_are_found_by_worker_processes(own_folder: Path) -> None:
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    ended = console_script(*OWN, "-m", "seed=0,1", *joblib, at=own_folder)
    assert ended.code == 0, ended.err
    assert len(list((own_folder / "outputs" / "mine").glob("*/*/best.pt"))) == 2


def test_the_check_of_a_model_changes_neither_the_model_nor_random_numbers() -> None:
    cfg = compose("dataset=digits", "trainer.device=cpu", "model._target_=own_networks.Network", *NO_OPTIONS["model"])
    expected = assembly.make_model(cfg, shape=(1, 8, 8), outputs=10)
    state = torch.random.get_rng_state()
    model = parts_with("model", "own_networks.Network").model
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (model.calls, model.training) == (0, True)
    for (name, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_a_loss_of_torch_with_an_invalid_option_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^loss=multi_margin: only p == 1 and p == 2 supported$"):
        assembly.assemble(compose("dataset=digits", "trainer.device=cpu", "loss=multi_margin", "loss.p=3"))


def test_a_bug_in_shipped_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("a bug")

    component = build.validate(compose("dataset=digits"))["model"]
    monkeypatch.setattr(fail, "__module__", "dlhw.models.dense")
    with pytest.raises(KeyError, match="a bug"):
        build.Component(component.name, fail, {}).build()


def test_the_files_of_own_targets_are_known(modules: Path) -> None:
    cfg = parts_with("model", "own_networks.Network").components.cfg
    assert own_code.sources(cfg) == [modules / "own_networks.py"]
    assert own_code.sources(compose("dataset=digits")) == []
