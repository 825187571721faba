"""The frozen part of a model computed once: the same numbers as in every epoch, and the same files."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dlhw
from dlhw import train as program
from dlhw.cli import assembly
from dlhw.models.convolutional import cnn
from dlhw.models.dropout import Dropout
from dlhw.runs import checkpoint
from dlhw.runs.record import Record
from dlhw.runtime.devices import Precision
from dlhw.runtime.progress import Progress
from dlhw.training import features
from dlhw.training.features import cut
from dlhw.training.finetuning import freeze, frozen_modules
from support.composing import compose


def small_cnn(**changed: Any) -> nn.Sequential:
    options: dict[str, Any] = {"hidden": [6], "activation": "ReLU", "dropout": 0.0, "batch_norm": False}
    return cnn((3, 8, 8), 5, channels=[4, 5], kernel=3, **(options | changed))


class Block(nn.Module):
    """A residual block: a convolution, batch norm, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)) + x)


class Residual(nn.Module):
    """A stem, three blocks, and a head after dropout, as published networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(Block(), Block(), Block())
        self.dropout = Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(functional.relu(self.stem(x)))
        return self.fc(self.dropout(torch.flatten(x.mean((2, 3)), 1)))


class TwoRoads(nn.Module):
    """Two frozen layers see the picture, and the head sees both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.fc = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.one(x)) + self.other(x)


class Deciding(nn.Module):
    """Which way it goes follows from the numbers, so that there is no graph of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(x if x.sum() > 0 else -x)


class Functional(nn.Module):
    """Dropout as a function, in training mode only, or always."""

    def __init__(self, *, asks: bool) -> None:
        super().__init__()
        self.body, self.fc, self.asks = nn.Linear(4, 30), nn.Linear(30, 2), asks

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.body(x))
        return self.fc(functional.dropout(x, 0.5, self.training) if self.asks else functional.dropout(x))


def ready(model: nn.Module, *, training: bool) -> nn.Module:
    """The model as the loop has it, its dropout masks those of a first batch."""
    model.train(training)
    for module in frozen_modules(model):
        module.eval()
    for layer in model.modules():
        if isinstance(layer, Dropout):
            layer.key.fill_(7)
    return model


WEIGHTS = ("weight", "bias")
CUTS: dict[str, tuple[Callable[[], nn.Module], Any, set[str]]] = {
    "cnn, head": (small_cnn, "head", {"9.weight", "9.bias"}),
    "cnn, two dense layers": (small_cnn, ["7.*", "9.*"], {"7.weight", "7.bias", "9.weight", "9.bias"}),
    "dropout before the head": (lambda: small_cnn(dropout=0.5), "head", {"10.weight", "10.bias"}),
    "frozen layers after what trains": (small_cnn, ["3.*"], {f"{i}.{kind}" for i in (3, 7, 9) for kind in WEIGHTS}),
    "batch norm trains in the middle": (
        lambda: small_cnn(batch_norm=True),
        ["5.*"],
        {f"{i}.{kind}" for i in (5, 9, 11) for kind in WEIGHTS},
    ),
    "residual, head": (Residual, "head", {"fc.weight", "fc.bias"}),
    "residual, last block": (
        Residual,
        ["layers.2.*", "fc.*"],
        {f"{name}.{kind}" for name in ("layers.2.conv", "layers.2.norm", "fc") for kind in WEIGHTS},
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CUTS)
def test_the_rest_of_what_is_frozen_is_the_model(name: str, training: bool) -> None:
    make, trains, expected = CUTS[name]
    torch.manual_seed(0)
    model = make().double()
    freeze(model, trains)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    halves = cut(model)
    assert halves is not None
    assert {name for name, _ in halves.rest.named_parameters()} == expected
    assert {id(tensor) for tensor in halves.rest.parameters()} <= {id(tensor) for tensor in model.parameters()}
    assert not any(parameter.requires_grad for parameter in halves.frozen.parameters())
    taken = halves.frozen(x)
    assert torch.equal(halves.frozen(x), taken)
    whole = ready(model, training=training)(x).clone()
    rest = ready(halves.rest, training=training)(taken)
    torch.testing.assert_close(rest, whole, rtol=1e-12, atol=1e-12)


def test_it_is_cut_before_dropout_and_as_late_as_can_be() -> None:
    model = small_cnn(dropout=0.5)
    freeze(model, "head")
    halves = cut(model)
    assert halves is not None
    assert halves.frozen(torch.rand(2, 3, 8, 8)).shape == (2, 6)
    assert any(isinstance(layer, Dropout) for layer in halves.rest.modules())
    assert not any(isinstance(layer, Dropout) for layer in halves.frozen.modules())


@pytest.mark.parametrize("model", [TwoRoads(), Deciding()])
def test_a_model_that_is_not_cut_keeps_its_modes(model: nn.Module) -> None:
    model.fc.eval()
    freeze(model, ["fc.*"])
    assert cut(model) is None
    assert [layer.training for layer in model.modules()] == [True] * (len(list(model.modules())) - 1) + [False]


@pytest.mark.parametrize(
    ("model", "trains"),
    [
        (small_cnn(), "all"),
        (small_cnn(), ["0.*"]),
        (TwoRoads(), ["fc.*"]),
        (Residual(), ["layers.1.norm.*"]),
    ],
    ids=["all trains", "the first layer trains", "two tensors cross", "a block's input crosses beside its convolution"],
)
def test_what_no_single_tensor_crosses_is_not_cut(model: nn.Module, trains: Any) -> None:
    freeze(model, trains)
    assert cut(model) is None


@pytest.mark.parametrize("model", [Deciding(), Functional(asks=True)], ids=["by its numbers", "by its mode"])
def test_a_model_that_decides_as_it_goes_is_not_cut_and_a_line_says_so(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    freeze(model, "head")
    with caplog.at_level(logging.INFO, "dlhw"):
        assert cut(model) is None
    (line,) = caplog.messages
    assert line.startswith(f"cannot separate the frozen part of {type(model).__name__} (")
    assert line.endswith("); it is computed in every epoch")
    assert "\n" not in line


def test_dropout_that_always_drops_is_not_frozen() -> None:
    model = Functional(asks=False)
    freeze(model, "head")
    halves = cut(model)
    assert halves is not None
    x = torch.rand(3, 4)
    assert torch.equal(halves.frozen(x), functional.relu(model.body(x)))
    assert (halves.rest(torch.ones(50, 30)).std(0) > 0).all()


# --- runs -------------------------------------------------------------------------------------------------

RUN = ("model=cnn", "model.channels=[3,4]", "model.kernel=3", "model.dropout=0.3", "optimizer=adam",
       "trainer.trains=head", "trainer.device=cpu", "trainer.precision=fp64", "trainer.batch_size=300",
       "trainer.epochs=4", "trainer.train_metrics=evaluated")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_drawn_or_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("dlhw.cli.lifecycle.finish", lambda *parts: None)
    features._cache.clear()
    yield
    features._cache.clear()


def run(directory: Path, *overrides: str) -> list[list[float]]:
    directory.mkdir(exist_ok=True)
    program.run(compose(*RUN, *overrides) if overrides[:1] != ("resume",) else resumed(directory), Record(directory))
    with (directory / "metrics.csv").open() as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


def resumed(directory: Path) -> Any:
    return compose(f"resume={directory}")


def assert_equal(one: list[list[float]], other: list[list[float]]) -> None:
    """To nine of the ten digits that are written."""
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=2e-9, atol=1e-9)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the frozen part was asked for, call by call."""
    counts: list[int] = []
    real = features._features

    def counting(*arguments: Any, count: int, **named: Any) -> Tensor:
        counts.append(count)
        return real(*arguments, count=count, **named)

    monkeypatch.setattr(features, "_features", counting)
    return counts


AUGMENTED = ("augmentation=shift", "augmentation.workers=0")
CASES = {
    "head": (),
    "with flooding and l2": ("regularization.flood=1.9", "regularization.l2=0.01"),
    "batch norm stands still": ("model.batch_norm=true",),
    "a layer in the middle trains": ("trainer.trains=[4.*]", "model.batch_norm=true"),
    "augmented, each epoch a view of its own": (*AUGMENTED, "trainer.frozen_views=4"),
}


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_the_whole_model_in_every_epoch(tmp_path: Path, name: str) -> None:
    once = run(tmp_path / "once", *CASES[name])
    assert features._cache
    every = run(tmp_path / "every", *CASES[name], "trainer.frozen_once=false")
    assert_equal(once, every)


def test_views_are_taken_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted(monkeypatch)
    data = assembly.assemble(compose(*RUN, *AUGMENTED, "trainer.frozen_views=2")).trained_on
    assert counts == [1, 1415, 382, 1132, 1132]
    assert len(data.views) == 2
    assert [data.view(epoch) is data.views[(epoch - 1) % 2] for epoch in range(1, 6)] == [True] * 5
    assert not torch.equal(data.views[0].x, data.views[1].x)
    assert torch.equal(data.views[1].y, data.train.y)
    assert data.augmentation is None


def test_without_views_augmented_pictures_go_through_the_whole_model() -> None:
    made = assembly.assemble(compose(*RUN, *AUGMENTED))
    assert made.trained is made.model
    assert made.trained_on is made.data


def test_mixed_pictures_have_no_views(tmp_path: Path) -> None:
    with pytest.raises(dlhw.UsageError) as raised:
        assembly.assemble(compose(*RUN, *AUGMENTED, "augmentation.mixup=0.2", "trainer.frozen_views=2"))
    assert (
        str(raised.value) == "trainer.frozen_views: mixup and cutmix mix other pictures in every epoch; expected null"
    )


@pytest.mark.parametrize("case", [(), (*AUGMENTED, "trainer.frozen_views=3")], ids=["plain", "views"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, ...]
) -> None:
    run(tmp_path / "whole", *case)
    steps = 0

    def stop(self: Progress) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", *case, "trainer.checkpoint_seconds=0")
    features._cache.clear()
    assert len(checkpoint.load(tmp_path / "stopped" / "last.pt")["rows"]) == 2
    run(tmp_path / "stopped", "resume")
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "stopped" / "metrics.csv").read_bytes()
    for name in ("best.pt", "last.pt"):
        one, other = (checkpoint.load(tmp_path / folder / name)["model"] for folder in ("whole", "stopped"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_the_weights_on_disk_are_the_whole_model(tmp_path: Path) -> None:
    rows = run(tmp_path / "run")
    made = assembly.assemble(compose(*RUN))
    model = dlhw.load_run(tmp_path / "run").model("last")
    assert model.state_dict().keys() == made.model.state_dict().keys()
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) == (not name.startswith("8.")), name
    with torch.no_grad():
        loss = functional.cross_entropy(model(made.data.normalize(made.data.val.x)), made.data.val.y)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert float(loss) == pytest.approx(rows[-1][header.index("val_loss")], rel=1e-9)


# --- what is kept -----------------------------------------------------------------------------------------


def made(*overrides: str) -> assembly.Parts:
    return assembly.assemble(compose(*RUN, *overrides))


def test_jobs_share_features_while_nothing_before_the_cut_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted(monkeypatch)
    first = made()
    assert counts == [1, 1415, 382]
    for same in ("optimizer.lr=0.5", "model.dropout=0.4", "trainer.epochs=9"):
        assert made(same).trained_on.train.pool_x is first.trained_on.train.pool_x
    assert counts == [1, 1415, 382, 1, 1, 1]


@pytest.mark.parametrize(
    "other", ["model.activation=Tanh", "seed=1", "dataset.mean=0.1", "model.batch_norm=true", "trainer.precision=fp32"]
)
def test_another_frozen_part_has_features_of_its_own(other: str) -> None:
    first, second = made(), made(other)
    one, two = first.trained_on.val, second.trained_on.val
    assert one.pool_x.shape == two.pool_x.shape
    assert not torch.equal(one.pool_x.double(), two.pool_x.double())
    with torch.no_grad():
        taken = second.trained.eval()(second.trained_on.normalize(two.pool_x[:9]))
        whole = second.model.eval()(second.data.normalize(second.data.val.pool_x[:9]))
    torch.testing.assert_close(taken, whole)
    assert all(tensor is not one.pool_x for tensor in features._cache.values())  # no memory for what is gone


def test_layers_of_equal_names_and_weights_with_other_settings_are_told_apart() -> None:
    def frozen(padding: str, stride: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3, stride, 1, padding_mode=padding), nn.Flatten(), nn.LazyLinear(2))
        model(torch.zeros(1, 1, 8, 8))
        freeze(model, "head")
        halves = cut(model)
        assert halves is not None
        return halves.frozen

    data, precision = made().data, Precision("fp64", torch.device("cpu"))
    hashes = {
        features._hash(frozen(*settings), data, precision) for settings in (("zeros", 1), ("circular", 1), ("zeros", 2))
    }
    assert len(hashes) == 3


def test_what_memory_does_not_hold_is_computed_in_every_epoch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dlhw.runtime.devices.free_memory", lambda device: 0)
    with caplog.at_level(logging.INFO, "dlhw"):
        one = made()
    assert one.trained is one.model
    assert "the frozen part is computed in every epoch, because its features take" in caplog.text


def test_a_sweep_over_rates_trains_as_one_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.commands import dlhw as command  # runs main in this process

    monkeypatch.undo()
    counts = counted(monkeypatch)
    result = command(
        "-m", *RUN, "optimizer.lr=0.01,0.02,0.03", "hydra/launcher=vectorized", "hydra.sweep.dir=S", at=tmp_path
    )
    assert result.code == 0
    assert "training 3 jobs at once" in "\n".join(result.lines)
    assert [count for count in counts if count > 1] == [1415, 382]
    alone = run(tmp_path / "alone", "optimizer.lr=0.02", "trainer.frozen_once=false")
    with (tmp_path / "S" / "optimizer.lr=0.02" / "metrics.csv").open() as file:
        together = [[float(value) for value in row.values()] for row in csv.DictReader(file)]
    assert_equal(together, alone)
