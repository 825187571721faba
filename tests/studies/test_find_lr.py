"""The learning-rate range test: the steps of training at rising rates, and the rate that it suggests."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import open_dict

from dlhw import find_lr as command
from dlhw.cli import ensembles
from dlhw.cli.assembly import assemble
from dlhw.errors import UsageError
from dlhw.studies.find_lr import RangeTest, conclusion, find_lr, losses_at, numbers_of, range_test, smoothed
from dlhw.training.loop import Training
from dlhw.training.run import TrainingRun
from dlhw.training.variants import Ensemble, Single
from support.commands import SMALL, dlhw, files, only, summary
from support.composing import compose

RATES = [10 ** (-6 + 7 * step / 199) for step in range(200)]
SHORT = ("study=find_lr", "study.steps=40", *SMALL)


def trainings_of(*overrides: str, seeds: int = 1) -> list[Training]:
    return list(ensembles.trainings(compose(*SMALL, *overrides), seeds))


def curve(*, falls_at: float = 1e-2, rises_at: float = math.inf, floor: float = 0.1) -> list[float]:
    """Losses that are 1 below a rate, fall linearly in its logarithm for a decade, and are 3 from another rate on."""
    return [
        3.0 if rate >= rises_at else 1 - (1 - floor) * min(1.0, max(0.0, math.log10(rate / falls_at))) for rate in RATES
    ]


def test_the_first_step_is_that_of_training(tmp_path: Path) -> None:
    cfg = compose(*SMALL, "optimizer.lr=0.5", "regularization.l2=0.01")
    parts = assemble(cfg)
    single = Single(parts.trained, parts.optimizer, parts.schedule)
    (training,) = trainings_of("regularization.l2=0.01")
    run = TrainingRun(training.runs[0].record, seed=0, regularization=parts.regularization)
    trained = Training(
        single, [run], parts.trained_on, parts.data_loss, trainer=parts.trainer, precision=parts.precision
    )
    expected = next(trained.train_epoch(1))
    assert losses_at(training, [0.5])[0] == expected[:, 0].tolist()
    for weight, other in zip(training.variants.parameters(), single.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_steps_continue_in_the_next_epochs_at_the_given_rates() -> None:
    (training,) = trainings_of("trainer.batch_size=500")
    used = []
    step = training.variants.step

    def noting(**options: float) -> None:
        used.append(training.variants.learning_rate(0))
        step(**options)

    training.variants.step = noting  # type: ignore[method-assign]
    rates = [0.001 * 1.5**number for number in range(8)]
    (losses,) = losses_at(training, rates)
    assert training.steps == 3
    assert used == rates
    assert len(losses) == 8


def test_layers_keep_the_ratio_of_their_rates() -> None:
    cfg = compose(*SMALL)
    cfg.trainer.rates = {"*.bias": 0.1}
    (training,) = ensembles.trainings(cfg, 1)
    losses_at(training, [0.2, 0.3])
    assert [group["lr"] for group in training.variants.optimizer.param_groups] == [0.3, pytest.approx(0.03, rel=1e-12)]


def test_seeds_are_trained_at_once_if_the_model_is_dense() -> None:
    (together,) = trainings_of("trainer.precision=fp64", seeds=2)
    assert isinstance(together.variants, Ensemble)
    assert together.seeds == [0, 1]
    alone = [trainings_of("trainer.precision=fp64", f"seed={seed}")[0] for seed in (0, 1)]
    expected = [losses_at(training, RATES[100:110])[0] for training in alone]
    assert losses_at(together, RATES[100:110]) == [pytest.approx(losses, rel=1e-9) for losses in expected]


def test_convolutional_networks_are_trained_one_after_the_other_on_a_cpu() -> None:
    cfg = compose("dataset=digits", "model=cnn", "model.channels=[2]", "trainer.device=cpu")
    assert [training.seeds for training in ensembles.trainings(cfg, 2)] == [[0], [1]]


def test_linear_regression_diverges_above_two_over_the_largest_eigenvalue() -> None:
    """Gradient descent on half the mean squared error, with all samples in each batch."""
    cfg = compose(
        *("dataset=diabetes", "model.hidden=[]", "loss=half_mse", "trainer.monitor=val_mse", "trainer.device=cpu"),
        "trainer.batch_size=1000",
    )
    data = assemble(cfg).data
    inputs = data.normalize(data.train.x).flatten(1)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)
    limit = 2 / torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1].item()

    trainings = functools.partial(ensembles.trainings, cfg)
    answer = find_lr(lowest=0.05, highest=5, steps=600, seeds=1, trainings=trainings)
    assert 1 <= float(answer.numbers["diverges_above"]) / limit < 1.5
    assert 0.05 < float(answer.numbers["learning_rate"]) / limit < 1


def test_suggestion_is_the_larger_one_of_steepest_descent_and_a_tenth_of_the_minimum() -> None:
    assert RangeTest(steepest=0.1, minimum=0.5, divergence=2.0).suggestion == 0.1
    assert RangeTest(steepest=0.01, minimum=0.5, divergence=None).suggestion == 0.05
    assert RangeTest(steepest=0.1, minimum=None, divergence=None).suggestion is None


def test_rates_of_a_curve_that_falls_for_a_decade_and_jumps() -> None:
    test = range_test(RATES, curve(falls_at=1e-3, rises_at=1.0))
    assert test.steepest == pytest.approx(1e-2, rel=0.3)
    assert test.minimum is not None
    assert 0.3 < test.minimum < 1
    assert test.divergence == pytest.approx(1.0, rel=0.6)


def test_a_spike_is_not_divergence() -> None:
    losses = curve()
    losses[150] = 50.0
    assert range_test(RATES, losses).divergence is None


def test_losses_that_end_early_have_diverged_at_the_next_rate() -> None:
    losses = curve()[:180]
    assert range_test(RATES, losses).divergence == RATES[180]
    assert range_test(RATES, [1.0] * 50) == RangeTest(None, None, RATES[50])
    assert range_test(RATES, []) == RangeTest(None, None, None)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_smoothed_losses_are_weighted_means_of_the_earlier_ones(losses: list[float]) -> None:
    means = smoothed(losses)
    for step, mean in enumerate(means):
        weights = [0.9 ** (step - earlier) for earlier in range(step + 1)]
        expected = math.fsum(map(lambda w, x: w * x, weights, losses)) / math.fsum(weights)
        assert mean == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("tests", "line"),
    [
        (
            [RangeTest(0.1, 0.5, 2.0), RangeTest(0.4, 0.5, 3.0)],
            "suggested: optimizer.lr=0.2 (2 seeds: 0.1 to 0.4; the loss diverges above 2)",
        ),
        ([RangeTest(0.1, 0.5, None)], "suggested: optimizer.lr=0.1 (1 seed; the loss does not diverge up to 10)"),
        (
            [RangeTest(0.1, 0.5, 2.0), RangeTest(None, None, None)],
            "no suggestion: the loss does not decrease at the rates from 1e-06 to 10, and diverges above 2; expected a "
            "smaller study.lowest",
        ),
        ([RangeTest(None, None, None)], "no suggestion: the loss does not decrease at the rates from 1e-06 to 10"),
        (
            [RangeTest(0.1, None, None)],
            "no suggestion: the loss still decreases at 10; expected a larger study.highest",
        ),
    ],
    ids=["two seeds", "one seed", "one diverges", "constant", "decreases"],
)
def test_line_with_the_suggestion(tests: list[RangeTest], line: str) -> None:
    assert conclusion(tests, lowest=1e-6, highest=10) == line


def test_numbers_are_geometric_means_and_the_smallest_divergence() -> None:
    numbers = numbers_of([RangeTest(0.1, 0.5, 2.0), RangeTest(0.4, 2.0, 3.0)])
    assert numbers == pytest.approx(
        {"learning_rate": 0.2, "steepest_descent": 0.2, "minimum_divided_by_10": 0.1, "diverges_above": 2.0}
    )
    assert numbers_of([RangeTest(0.1, None, None)]) == {"steepest_descent": pytest.approx(0.1)}


def test_files_and_summary(tmp_path: Path) -> None:
    result = dlhw(*SHORT, "study.lowest=0.001", "scheduler=cosine", "hydra.run.dir=test", at=tmp_path)
    assert result.code == 0, result.err
    assert files(tmp_path / "test") == {
        *("config.yaml", "run.log", "summary.json", "tables/learning_rates.csv", "figures/learning_rates.png"),
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
    }
    table = pd.read_csv(tmp_path / "test" / "tables" / "learning_rates.csv")
    assert list(table) == ["seed", "learning_rate", "loss", "smoothed_loss"]
    assert table.groupby("seed").size().index.tolist() == [0, 1, 2]
    assert table["learning_rate"].min() == pytest.approx(0.001)
    rate = summary(tmp_path / "test")["learning_rate"]
    assert f"suggested: optimizer.lr={rate:.2g} (3 seeds: " in result.err
    assert "scheduler=cosine is not used here: the study sets the learning rate of each step" in result.lines


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=jacobian"],
            "study=find_lr: experiment=jacobian does not train, because it is study=jacobian; expected an experiment "
            "that trains",
        ),
        (["study.highest=1e-7"], "study.highest=1e-07: must be greater than study.lowest=1e-06"),
        (["study.steps=5"], "study.steps=5: must be greater than or equal to 20"),
        (["study.seeds=0"], "study.seeds=0: must be greater than or equal to 1"),
    ],
)
def test_mistakes_leave_no_directory(tmp_path: Path, overrides: list[str], message: str) -> None:
    result = dlhw("study=find_lr", *overrides, at=tmp_path)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(message)
    assert files(tmp_path) == set()


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    cfg = compose(*SMALL)
    with open_dict(cfg):
        del cfg.optimizer["lr"]
    with pytest.raises(UsageError, match=r"^optimizer=sgd: has no option lr; expected an optimizer with one$"):
        next(ensembles.trainings(cfg, 1))


def test_a_study_of_another_kind_may_use_the_model_of_an_experiment_with_a_study() -> None:
    assert compose("experiment=jacobian", "study=cost").study["_target_"] == "dlhw.studies.cost.cost"


def test_the_command_adds_the_study(tmp_path: Path) -> None:
    """Its runs are not among those of the experiment, whose newest run is meant by their folder."""
    result = dlhw("study.steps=40", *SMALL, "study.seeds=1", "experiment=flooding", at=tmp_path, main=command.main)
    assert result.code == 0, result.err
    run = only(list(tmp_path.glob("outputs/*/*")))
    assert run.parent.name == "find_lr"
    assert (run / "tables" / "learning_rates.csv").is_file()


def test_the_command_does_not_resume(tmp_path: Path) -> None:
    """It would train a run of another kind further."""
    result = dlhw("resume=DIR", at=tmp_path, main=command.main)
    message = "resume: invalid for find-lr; dlhw resume=DIR continues its runs as all others\n"
    assert (result.code, result.err) == (1, message)


def test_a_table_is_described_once_for_all_seeds(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(60)))
    data = ("dataset=table", "dataset.path=t.csv", "dataset.target=y", "model.hidden=[8]")
    result = dlhw("study.steps=20", *data, at=tmp_path, main=command.main)
    assert [line.startswith("t.csv: 60 rows; ") for line in result.lines].count(True) == 1


def test_the_command_refuses_sweeps(tmp_path: Path) -> None:
    result = dlhw("experiment=flooding_search", at=tmp_path, main=command.main)
    assert result.code == 1
    assert result.err == (
        "find-lr: needs one setting, not a sweep; remove -m, or add hydra.mode=RUN and a value of each key\n"
    )
    assert files(tmp_path) == set()


def test_help_of_the_command_names_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dlhw find-lr", "--help"])
    command.main()
    text = capsys.readouterr().out
    for name, value in compose("study=find_lr").study.items():
        if name != "_target_":
            assert f"study.{name}={value:g}".replace("e-06", "e-6") in text


def test_inputs_that_depend_on_the_seed_are_trained_one_after_the_other(tmp_path: Path) -> None:
    """A rare category is an input only if the training part of the seed has it."""
    kinds = ["a", "b"] * 29 + ["c", "d"]
    (tmp_path / "t.csv").write_text("kind,y\n" + "".join(f"{kind},{i % 2}\n" for i, kind in enumerate(kinds)))
    data = ("dataset=table", "dataset.path=t.csv", "dataset.target=y", "model.hidden=[8]")
    result = dlhw("study.steps=20", *data, at=tmp_path, main=command.main)
    assert result.code == 0, result.err
    run = only(list(tmp_path.glob("outputs/find_lr/*")))
    assert pd.read_csv(run / "tables" / "learning_rates.csv")["seed"].unique().tolist() == [0, 1, 2]
