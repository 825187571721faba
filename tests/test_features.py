"""Features of the frozen part, computed once: runs equal those of the whole model, jobs share features."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import dlhw
from dlhw import train as program
from dlhw.cli import assembly
from dlhw.runtime.devices import Precision
from dlhw.runtime.progress import Progress
from dlhw.storage import checkpoint
from dlhw.storage.record import Record
from dlhw.training import features
from dlhw.training.features import Cut, cut
from dlhw.training.finetuning import freeze
from support import commands
from support.composing import compose

RUN = ("model=cnn", "model.channels=[3,4]", "model.kernel=3", "model.dropout=0.3", "optimizer=adam",
       "trainer.trains=head", "trainer.device=cpu", "trainer.precision=fp64", "trainer.batch_size=300",
       "trainer.epochs=4", "trainer.train_metrics=evaluated")  # fmt: skip


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    """Start without features in the cache, and leave none."""
    features.clear_cache()
    yield
    features.clear_cache()


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures and the summary at the end of a run, to save time."""
    monkeypatch.setattr("dlhw.cli.lifecycle.finish", lambda *parts: None)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in each call of a frozen part, in order."""
    return record_counts(monkeypatch)


def record_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []

    def counting_cut(model: nn.Module) -> Cut | None:
        parts = cut(model)
        if parts is not None:
            parts.frozen.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
        return parts

    monkeypatch.setattr(features, "cut", counting_cut)
    return counts


def assembled(*overrides: str) -> assembly.Parts:
    """Return the parts of a run, with features computed if possible."""
    return assembly.assemble(compose(*RUN, *overrides))


def run(directory: Path, *overrides: str) -> list[list[float]]:
    directory.mkdir(exist_ok=True)
    program.run(compose(*RUN, *overrides), Record(directory))
    return rows_of(directory)


def rows_of(directory: Path) -> list[list[float]]:
    """Return the numbers in the metrics of a run, row by row."""
    with (directory / "metrics.csv").open() as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


def assert_close(actual: list[list[float]], expected: list[list[float]]) -> None:
    """Compare to nine of the ten digits that are written."""
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=2e-9, atol=1e-9)


AUGMENTED = ("augmentation=shift", "augmentation.workers=0")
CASES = {
    "head": (),
    "head with flooding and l2": ("regularization.flood=1.9", "regularization.l2=0.01"),
    "frozen batch norm": ("model.batch_norm=true",),
    "trained layer in the middle": ("trainer.trains=[4.*]", "model.batch_norm=true"),
    "augmented, one view per epoch": (*AUGMENTED, "trainer.frozen_views=4"),
}


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_those_of_the_whole_model(tmp_path: Path, counts: list[int], name: str) -> None:
    computed_once = run(tmp_path / "once", *CASES[name])
    assert counts
    computed_every_epoch = run(tmp_path / "every_epoch", *CASES[name], "trainer.frozen_once=false")
    assert_close(computed_once, computed_every_epoch)


def test_views_are_taken_in_turn(counts: list[int]) -> None:
    data = assembled(*AUGMENTED, "trainer.frozen_views=2").trained_on
    assert counts == [1, 1415, 382, 1132, 1132]
    assert len(data.views) == 2
    assert [data.view(epoch) is data.views[(epoch - 1) % 2] for epoch in range(1, 6)] == [True] * 5
    assert not torch.equal(data.views[0].x, data.views[1].x)
    assert torch.equal(data.views[1].y, data.train.y)
    assert data.augmentation is None


def test_augmented_pictures_without_views_go_through_the_whole_model() -> None:
    parts = assembled(*AUGMENTED)
    assert parts.trained is parts.model
    assert parts.trained_on is parts.data


def test_views_of_mixed_pictures_are_an_error() -> None:
    with pytest.raises(dlhw.UsageError) as raised:
        assembled(*AUGMENTED, "augmentation.mixup=0.2", "trainer.frozen_views=2")
    message = "trainer.frozen_views: mixup and cutmix mix other pictures in every epoch; expected null"
    assert str(raised.value) == message


@pytest.mark.parametrize("overrides", [(), (*AUGMENTED, "trainer.frozen_views=3")], ids=["plain", "views"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    run(tmp_path / "uninterrupted", *overrides)
    steps = 0

    def interrupt(self: Progress) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "interrupted", *overrides, "trainer.checkpoint_seconds=0")
    features.clear_cache()
    assert len(checkpoint.load(tmp_path / "interrupted" / "last.pt")["rows"]) == 2
    program.run(compose(f"resume={tmp_path / 'interrupted'}"), Record(tmp_path / "interrupted"))
    directories = tmp_path / "uninterrupted", tmp_path / "interrupted"
    expected_metrics, resumed_metrics = ((directory / "metrics.csv").read_bytes() for directory in directories)
    assert resumed_metrics == expected_metrics
    for name in ("best.pt", "last.pt"):
        expected, resumed = (checkpoint.load(directory / name)["model"] for directory in directories)
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[key], expected[key]) for key in expected), name


def test_the_checkpoint_contains_the_whole_model(tmp_path: Path) -> None:
    rows = run(tmp_path / "run")
    parts = assembled()
    model = dlhw.load_run(tmp_path / "run").model("last")
    assert model.state_dict().keys() == parts.model.state_dict().keys()
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) == (not name.startswith("8.")), name
    with torch.no_grad():
        loss = functional.cross_entropy(model(parts.data.normalize(parts.data.val.x)), parts.data.val.y)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert float(loss) == pytest.approx(rows[-1][header.index("val_loss")], rel=1e-9)


def test_jobs_with_the_same_frozen_part_share_features(counts: list[int]) -> None:
    first = assembled()
    assert counts == [1, 1415, 382]
    for override in ("optimizer.lr=0.5", "model.dropout=0.4", "trainer.epochs=9"):
        assert assembled(override).trained_on.train.pool_x is first.trained_on.train.pool_x
    assert counts == [1, 1415, 382, 1, 1, 1]


@pytest.mark.parametrize(
    "other", ["model.activation=Tanh", "seed=1", "dataset.mean=0.1", "model.batch_norm=true", "trainer.precision=fp32"]
)
def test_another_frozen_part_replaces_the_features(other: str) -> None:
    first, second = assembled(), assembled(other)
    val, other_val = first.trained_on.val, second.trained_on.val
    assert val.pool_x.shape == other_val.pool_x.shape
    assert not torch.equal(val.pool_x.double(), other_val.pool_x.double())
    with torch.no_grad():
        output = second.trained.eval()(second.trained_on.normalize(other_val.pool_x[:9]))
        expected = second.model.eval()(second.data.normalize(second.data.val.pool_x[:9]))
    torch.testing.assert_close(output, expected)
    assert assembled().trained_on.val.pool_x is not val.pool_x  # the cache keeps only the most recent features


def test_frozen_parts_that_differ_in_settings_alone_do_not_share_features() -> None:
    def frozen_part(padding: str, stride: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3, stride, 1, padding_mode=padding), nn.Flatten(), nn.LazyLinear(2))
        model(torch.zeros(1, 1, 8, 8))
        freeze(model.double(), "head")
        parts = cut(model)
        assert parts is not None
        return parts.frozen

    data, precision = assembled().data, Precision("fp64", torch.device("cpu"))
    for settings in (("zeros", 1), ("circular", 1), ("zeros", 2), ("zeros", 1)):
        frozen = frozen_part(*settings)
        computed = features.frozen_features(frozen, data, seed=0, precision=precision, views=None)
        assert computed is not None
        with torch.no_grad():
            expected = frozen(data.normalize(data.val.pool_x))
        torch.testing.assert_close(computed.val.pool_x, expected)


def test_features_too_large_for_the_memory_are_not_computed_in_advance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dlhw.runtime.devices.free_memory", lambda device: 0)
    with caplog.at_level(logging.INFO, "dlhw"):
        parts = assembled()
    assert parts.trained is parts.model
    assert "the frozen part is computed in every epoch, because its features take" in caplog.text


def test_a_sweep_over_learning_rates_shares_features_and_equals_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the sweep needs the summaries of its runs
    counts = record_counts(monkeypatch)
    result = commands.dlhw(
        "-m", *RUN, "optimizer.lr=0.01,0.02,0.03", "hydra/launcher=vectorized", "hydra.sweep.dir=S", at=tmp_path
    )
    assert result.code == 0
    assert "training 3 jobs at once" in "\n".join(result.lines)
    assert [count for count in counts if count > 1] == [1415, 382]
    single = run(tmp_path / "single", "optimizer.lr=0.02", "trainer.frozen_once=false")
    assert_close(rows_of(tmp_path / "S" / "optimizer.lr=0.02"), single)
