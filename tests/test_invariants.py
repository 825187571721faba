"""The specification: which runs must be equal, bit for bit or to 1e-12, in float64 on the CPU."""

from __future__ import annotations

import functools
import gc
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dlhw.cli.assembly import assemble, make_model
from dlhw.cli.build import build
from dlhw.data.tensors import Dataset
from dlhw.runtime.devices import Precision
from dlhw.runtime.randomness import generator
from dlhw.storage.record import Record, Row
from dlhw.train import run
from dlhw.training.loop import Training
from dlhw.training.run import TrainingRun
from dlhw.training.variants import Single
from support.composing import compose

EPOCHS = 3
MODELS = ["model.hidden=[20]", "model.hidden=[20,10] model.dropout=0.3 model.batch_norm=true", "model=cnn"]
OPTIMIZERS = ["optimizer=sgd", "optimizer=momentum", "optimizer=nesterov", "optimizer=adagrad", "optimizer=rmsprop",
              "optimizer=adam", "optimizer=adamw"]  # fmt: skip


def trained(directory: Path, *overrides: str) -> tuple[nn.Module, list[Row]]:
    """The trained model and the rows of metrics of a run on digits in float64 with these overrides."""
    directory.mkdir(parents=True)
    lines = [word for line in overrides for word in line.split()]
    cfg = compose("trainer.precision=fp64", f"trainer.epochs={EPOCHS}", "trainer.device=cpu", *lines)
    record = Record(directory)
    run(cfg, record)
    state = torch.load(directory / "last.pt", weights_only=True)
    model = make_model(cfg, shape=(1, 8, 8), outputs=10).double()
    model.load_state_dict(state["model"])
    return model, record.rows


@functools.cache
def plain_run(model: str) -> tuple[nn.Module, list[Row]]:
    with tempfile.TemporaryDirectory() as directory:
        return trained(Path(directory) / "run", model)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def digits(seed: int = 0) -> Dataset:
    cfg = compose()
    data: Dataset = build(cfg, "dataset", data_dir="", seed=seed)
    return data.to(torch.device("cpu"), torch.float64)


def textbook(seed: int, lr: float, momentum: float, batch_size: int) -> tuple[nn.Module, list[float], list[float]]:
    """A plain training loop with all constants written out. Return the model, and its validation losses and errors."""
    data = digits(seed)
    model = make_model(compose("model.hidden=[20]", f"seed={seed}"), shape=(1, 8, 8), outputs=10).double()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    losses, errors = [], []
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(data.train.x), generator=generator(seed, "order", epoch))
        for i in range(0, len(order), batch_size):
            x, y = data.train.x[order[i : i + batch_size]], data.train.y[order[i : i + batch_size]]
            loss = cross_entropy(model((x.double() / 16 - 0.3054) / 0.3756), y)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, v, g in zip(model.parameters(), velocity, grads, strict=True):
                    v.mul_(momentum).add_(g)
                    p.sub_(lr * v)
        with torch.no_grad():
            logits = model((data.val.x.double() / 16 - 0.3054) / 0.3756)
        losses.append(float(cross_entropy(logits, data.val.y)))
        errors.append(100 * float((logits.argmax(1) != data.val.y).double().mean()))
    return model, losses, errors


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch_size", [128, 100, 5000])
def test_the_loop_equals_the_textbook_loop(tmp_path: Path, momentum: float, batch_size: int) -> None:
    model, rows = trained(
        tmp_path / "run", "model.hidden=[20] seed=3", f"optimizer.momentum={momentum} trainer.batch_size={batch_size}"
    )
    expected, losses, errors = textbook(3, 0.1, momentum, batch_size)
    torch.testing.assert_close(weights(model), weights(expected), rtol=0, atol=1e-12)
    assert [row["val_loss"] for row in rows] == pytest.approx(losses, abs=1e-12)
    assert [row["val_error_percent"] for row in rows] == pytest.approx(errors, abs=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loop_equals_a_plain_loop_with_torch_optim(tmp_path: Path, optimizer: str) -> None:
    """The plain loop calls ``step`` and ``zero_grad`` of the same class, with torch's wrappers."""
    cfg = compose("model.hidden=[20]", optimizer)
    data = digits()
    model = make_model(cfg, shape=(1, 8, 8), outputs=10).double()
    plain = build(cfg, "optimizer", params=model.parameters())
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(data.train), generator=generator(0, "order", epoch)).split(128):
            plain.zero_grad()
            cross_entropy(model(data.normalize(data.train.x[batch])), data.train.y[batch]).backward()
            plain.step()
    ours, _ = trained(tmp_path / "run", "model.hidden=[20]", optimizer)
    assert torch.equal(weights(ours), weights(model))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "option",
    [
        "regularization=flooding regularization.flood=0",
        "regularization=l1 regularization.l1=0",
        "regularization=l2 regularization.l2=0",
        "loss.label_smoothing=0",
        "trainer.clip_norm=1e300",
        "scheduler=step scheduler.every_epochs=1000",
        "scheduler=warmup scheduler.warmup_epochs=0",
        "trainer.patience=1000",
    ],
)
def test_disabled_options_leave_the_run_unchanged(tmp_path: Path, option: str, model: str) -> None:
    ours, rows = trained(tmp_path / "run", model, option)
    expected, expected_rows = plain_run(model)
    assert torch.equal(weights(ours), weights(expected))
    assert rows == expected_rows


@pytest.mark.parametrize(
    "option",
    [
        "probe=layers",
        "trainer.train_metrics=evaluated",
        "trainer.evaluation_batch_size=7",
        "trainer.checkpoint_seconds=0",
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_probes_evaluation_and_checkpoints_leave_the_weights_unchanged(tmp_path: Path, option: str, model: str) -> None:
    ours, _ = trained(tmp_path / "run", model, option)
    expected, _ = plain_run(model)
    assert torch.equal(weights(ours), weights(expected))


def test_l2_with_sgd_equals_weight_decay(tmp_path: Path) -> None:
    """SGD on loss + l2 sum w^2 equals weight decay of 2 l2 (E3), without weight decay of the biases."""
    cfg = compose("model.hidden=[20]")
    data, model = digits(), make_model(cfg, shape=(1, 8, 8), outputs=10).double()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 2e-3},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    plain = torch.optim.SGD(groups, lr=0.1)
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(data.train), generator=generator(0, "order", epoch)).split(128):
            plain.zero_grad()
            cross_entropy(model(data.normalize(data.train.x[batch])), data.train.y[batch]).backward()
            plain.step()
    ours, rows = trained(tmp_path / "run", "model.hidden=[20] regularization=l2 regularization.l2=1e-3")
    torch.testing.assert_close(weights(ours), weights(model), rtol=0, atol=1e-12)
    assert rows[-1]["train_objective"] == pytest.approx(rows[-1]["train_loss"] + rows[-1]["train_penalty"], abs=1e-12)


def test_flooding_equals_gradient_ascent_below_its_level(tmp_path: Path) -> None:
    """The objective is |R - b| + b: below b a step increases the loss, so that the training loss stays near b."""
    level, epochs = 1.5, 8
    data, model = digits(), make_model(compose("model.hidden=[20]"), shape=(1, 8, 8), outputs=10).double()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    below, objectives = [], []
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(data.train), generator=generator(0, "order", epoch)).split(128):
            plain.zero_grad()
            loss = cross_entropy(model(data.normalize(data.train.x[batch])), data.train.y[batch])
            objective = (loss - level).abs() + level
            objective.backward()
            plain.step()
            below.append(loss.item() < level)
            objectives.append((objective.item(), len(batch)))
    assert 0 < sum(below) < len(below)
    settings = f"model.hidden=[20] trainer.epochs={epochs} trainer.train_metrics=running"
    ours, rows = trained(tmp_path / "run", f"{settings} regularization=flooding regularization.flood={level}")
    torch.testing.assert_close(weights(ours), weights(model), rtol=0, atol=1e-12)
    total = sum(value * count for value, count in objectives[-9:])
    assert rows[-1]["train_objective"] == pytest.approx(total / len(data.train), abs=1e-12)
    assert abs(rows[-1]["train_loss"] - level) < 0.1
    _, without = trained(tmp_path / "without", settings)
    assert without[-1]["train_loss"] < level - 0.3


def test_clipping_bounds_the_norm_of_the_update(tmp_path: Path) -> None:
    """One step of plain SGD moves the weights by lr times the clipped norm."""
    cfg = compose("model.hidden=[20]")
    before = weights(make_model(cfg, shape=(1, 8, 8), outputs=10).double())
    after, _ = trained(
        tmp_path / "run", "model.hidden=[20] trainer.epochs=1 trainer.batch_size=5000 trainer.clip_norm=0.01"
    )
    assert float((weights(after) - before).norm()) == pytest.approx(0.1 * 0.01, rel=1e-4)  # torch adds 1e-6 to the norm


def test_early_stopping_equals_a_shorter_run(tmp_path: Path) -> None:
    """A run stops after ``patience`` epochs without a better one; until then its rows equal those of the long run."""
    _, long = trained(tmp_path / "long", "trainer.epochs=60")
    _, short = trained(tmp_path / "short", "trainer.epochs=60 trainer.patience=5")
    errors = [row["val_error_percent"] for row in long]
    stop = next(n for n in range(1, 61) if n - (errors[:n].index(min(errors[:n])) + 1) >= 5)
    assert len(short) == stop < 60
    assert short == long[:stop]
    best = torch.load(tmp_path / "short" / "best.pt", weights_only=True)
    assert best["epoch"] == stop - 5


def test_a_run_depends_on_its_seed_and_on_no_earlier_random_numbers(tmp_path: Path) -> None:
    """The same seed gives the same weights after other random numbers were drawn; another seed gives other weights."""
    one, _ = trained(tmp_path / "one", MODELS[1])
    torch.rand(17)
    again, _ = trained(tmp_path / "again", MODELS[1])
    other, _ = trained(tmp_path / "other", MODELS[1], "seed=1")
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))


def test_calling_the_loop_directly_equals_a_run(tmp_path: Path) -> None:
    """``Training.fit`` on a model, a dataset and an optimizer of torch gives the weights and metrics of a run."""
    cfg = compose("trainer.epochs=2", "trainer.precision=fp64", "model.hidden=[20]")
    data, model = digits(), make_model(cfg, shape=(1, 8, 8), outputs=10).double()
    training_run = TrainingRun(Record(tmp_path), seed=0, regularization=build(cfg, "regularization"))
    trainer = build(cfg, "trainer")
    single = Single(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: 1.0)
    precision = Precision("fp64", torch.device("cpu"))
    Training(single, [training_run], data, cross_entropy, trainer=trainer, precision=precision).fit()
    expected, rows = trained(tmp_path / "run", "trainer.epochs=2 model.hidden=[20] optimizer.fused=null")
    assert torch.equal(weights(model), weights(expected))
    assert training_run.result(trainer).final == rows[-1]


def test_steps_per_epoch_takes_the_first_batches_of_each_epoch(tmp_path: Path) -> None:
    """The textbook loop over the first batches of each permutation has the same weights and training losses."""
    data = digits()
    model = make_model(compose("model.hidden=[20]"), shape=(1, 8, 8), outputs=10).double()
    losses = []
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(data.train.x), generator=generator(0, "order", epoch))[: 2 * 16]
        batch_losses = []
        for batch in order.split(16):
            loss = cross_entropy(model(data.normalize(data.train.x[batch])), data.train.y[batch])
            batch_losses.append(loss.item())
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p.sub_(0.1 * g)
        losses.append(sum(batch_losses) / 2)
    ours, rows = trained(
        tmp_path / "run", "model.hidden=[20] optimizer.lr=0.1 trainer.batch_size=16 trainer.steps_per_epoch=2"
    )
    torch.testing.assert_close(weights(ours), weights(model), rtol=0, atol=1e-12)
    assert [row["train_loss"] for row in rows] == pytest.approx(losses, abs=1e-12)
    assert [row["step"] for row in rows] == [2, 4, 6]


def test_regression_equals_the_textbook_loop(tmp_path: Path) -> None:
    """The running and the evaluated squared errors equal those of plain SGD; no error rate or accuracy is recorded."""
    cfg = compose("dataset=diabetes", "model.hidden=[20]", "seed=1")
    data: Dataset = build(cfg, "dataset", data_dir="", seed=1).to("cpu", torch.float64)
    model = make_model(cfg, shape=(10,), outputs=1).double()
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(data.train), generator=generator(1, "order", epoch))
        squares = []
        for batch in order.split(100):
            x, y = data.train.x[batch], data.train.y[batch]
            predictions = model(x).squeeze(1)
            squares.append((predictions - y).detach().square())
            loss = torch.log(torch.cosh(predictions - y)).mean()
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p.sub_(0.1 * g)
    settings = "dataset=diabetes loss=log_cosh trainer.monitor=val_mse model.hidden=[20] seed=1 trainer.batch_size=100"
    directory = tmp_path / "run"
    directory.mkdir()
    record = Record(directory)
    run(compose(*settings.split(), "trainer.precision=fp64", f"trainer.epochs={EPOCHS}", "trainer.device=cpu"), record)
    with torch.no_grad():
        test = (model(data.test.x).squeeze(1) - data.test.y).square().mean().item()
    assert record.rows[-1]["train_mse"] == pytest.approx(torch.cat(squares).mean().item(), rel=1e-9)
    assert record.rows[-1]["test_mse"] == pytest.approx(test, rel=1e-9)
    assert not any("error" in name or "accuracy" in name for name in record.rows[-1])
    assert (directory / "curves.png").is_file()


@pytest.mark.parametrize("options", ["", "model.dropout=0.2 regularization.l2=0.01"])
def test_a_finished_training_is_freed_at_once(tmp_path: Path, options: str) -> None:
    """The models of a run are freed without the garbage collector."""
    cfg = compose("trainer.epochs=1", "trainer.device=cpu", "model.hidden=[4]", *options.split())
    parts = assemble(cfg)
    training_run = TrainingRun(Record(tmp_path), seed=0, regularization=parts.regularization)
    single = Single(parts.trained, parts.optimizer, parts.schedule)
    reference = weakref.ref(single)
    gc.disable()
    try:
        training = Training(
            single, [training_run], parts.data, parts.data_loss, trainer=parts.trainer, precision=parts.precision
        )
        training.fit()
        del training, single
        assert reference() is None
    finally:
        gc.enable()
