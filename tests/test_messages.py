"""The one-line error messages of invalid command lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlhw import train
from dlhw.cli import program
from dlhw.cli.build import build
from dlhw.errors import UsageError
from dlhw.storage.record import Record
from support.composing import compose, error_message
from support.config_files import EXPERIMENTS, option_names

MODELS, DATASETS = option_names("model"), option_names("dataset")
RAY = "ray, ray_aws, " if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") else ""
"""The launchers of an optional package."""
INCOMPATIBLE = {
    "loss=mse": "loss=mse: dataset=digits is for classification; expected loss=cross_entropy",
    "dataset=diabetes": (
        "loss=cross_entropy: dataset=diabetes is for regression; expected loss=half_mse, mse or log_cosh; "
        "expected trainer.monitor=val_mse or val_loss"
    ),
    "dataset=diabetes loss=mse": (
        "trainer.monitor=val_error_percent: dataset=diabetes is for regression; "
        "expected trainer.monitor=val_mse or val_loss"
    ),
    "trainer.monitor=val_mse": (
        "trainer.monitor=val_mse: dataset=digits is for classification; "
        "expected trainer.monitor=val_error_percent or val_loss"
    ),
    "dataset=diabetes loss=mse trainer.monitor=val_mse probe=layers": (
        "probe=layers: needs class labels; dataset=diabetes has numbers; expected probe=none"
    ),
    "trainer.steps_per_epoch=10": (
        "trainer.steps_per_epoch=10: must be at most 9, the number of batches of dataset=digits with "
        "trainer.batch_size=128"
    ),
    "model=mlp_by_hand probe=layers": (
        "probe=layers: needs dense or convolutional modules, which ByHand does not call; expected probe=none"
    ),
}


@pytest.mark.parametrize(("line", "message"), INCOMPATIBLE.items(), ids=INCOMPATIBLE)
def test_incompatible_options_have_a_one_line_message(tmp_path: Path, line: str, message: str) -> None:
    cfg = compose(*line.split(), "trainer.device=cpu", "trainer.epochs=1")
    with pytest.raises(UsageError) as error:
        train.run(cfg, Record(tmp_path))
    assert str(error.value) == message


INVALID = {
    # values
    "optimizer.lr=-1": "optimizer.lr=-1: must be greater than or equal to 0",
    "optimizer.lr=abc": "optimizer.lr=abc: must be a number",
    "optimizer.lr=": "optimizer.lr=: must be a number",
    "optimizer.lr=nan": "optimizer.lr=nan: must be finite (not nan or inf)",
    "optimizer.lr=inf": "optimizer.lr=inf: must be finite (not nan or inf)",
    "optimizer.lr=[1,2]": "optimizer.lr=[1, 2]: must be a number",
    "trainer.batch_size=0": "trainer.batch_size=0: must be greater than 0",
    "trainer.batch_size=1.5": "trainer.batch_size=1.5: must be a whole number",
    "trainer.epochs=two": "trainer.epochs=two: must be a whole number",
    "trainer.patience=0": "trainer.patience=0: must be greater than 0",
    "trainer.deterministic=3": "trainer.deterministic=3: must be true or false",
    "trainer.device=tpu": "trainer.device=tpu: must be 'auto', 'cpu', 'cuda' or 'mps'",
    "comparison.curves=train_loss": "comparison.curves=train_loss: must be a list",
    "trainer.monitor=val_acc": "trainer.monitor=val_acc: must be 'val_loss', 'val_error_percent' or 'val_mse'",
    "experiment=flooding b=nan": "b=nan (regularization.flood): must be finite (not nan or inf)",
    "experiment=flooding b=-0.1": "b=-0.1 (regularization.flood): must be greater than or equal to 0",
    "experiment=flooding b=": "b= (regularization.flood): must be a number",
    "model.dropout=1": "model.dropout=1: must be less than 1",
    "model.dropout=-0.1": "model.dropout=-0.1: must be greater than or equal to 0",
    "model.hidden=[5,0]": "model.hidden=[5, 0]: must be greater than 0",
    "dataset.std=0": "dataset.std=0: must be greater than 0",
    "loss.label_smoothing=2": "loss.label_smoothing=2: must be less than or equal to 1",
    "optimizer=adam optimizer.betas=[0.9,1]": "optimizer.betas=[0.9, 1]: must be less than 1",
    "seed=-1": "seed=-1: must be a whole number from 0 to 9223372036854775807",
    "seed=1.5": "seed=1.5: must be a whole number from 0 to 9223372036854775807",
    "seed=abc": "seed=abc: must be a whole number from 0 to 9223372036854775807",
    "~model.hidden": "model.hidden: missing; model=mlp needs it",
    # two errors, in the order of the groups; those of the trainer come first, before torch is imported
    "loss.label_smoothing=2 optimizer.lr=-1": (
        "loss.label_smoothing=2: must be less than or equal to 1\noptimizer.lr=-1: must be greater than or equal to 0"
    ),
    "trainer.batch_size=0 optimizer.lr=-1": "trainer.batch_size=0: must be greater than 0",
    "seed=1 model.dropout=2 model.batch_norm=3": (
        "model.dropout=2: must be less than 1\nmodel.batch_norm=3: must be true or false"
    ),
    # options
    "model=mpl": f"model=mpl: unknown model (did you mean mlp?); --help lists all {len(MODELS)}",
    "loss=hinge": (
        "loss=hinge: unknown loss; expected one of cross_entropy, cross_entropy_by_hand, half_mse, log_cosh, mse, "
        "multi_margin"
    ),
    "experiment=sigmoid_window optimizer.lr=3 dataset=mnist": (
        "optimizer.lr, dataset: not read by the study sigmoid_window; expected one of study.largest_weight, "
        "study.points, trainer.deterministic, trainer.threads"
    ),
    "study=cost trainer.epochs=3": (
        "trainer.epochs: not read by the study cost; expected one of augmentation, dataset, init, model, seed, "
        "trainer.channels_last, trainer.deterministic, trainer.device, trainer.precision, trainer.threads"
    ),
    "experiment=sigmoid_window seed=3": (
        "seed: not read by the study sigmoid_window; expected one of study.largest_weight, study.points, "
        "trainer.deterministic, trainer.threads"
    ),
    "experiment=backprop_depth seed=3 trainer.device=cpu": (
        "trainer.device: not read by the study backprop_depth; expected one of study.depth, study.output_depth, "
        "study.width, study.x, study.classes, study.label_of_x, study.inits, study.d, study.draws, seed, "
        "trainer.deterministic, trainer.threads"
    ),
    "experiment=sigmoid_window study.largest_weight=3": "study.largest_weight=3: must be greater than 8",
    "model=": f"model=: unknown model; --help lists all {len(MODELS)}",
    "experiment=floding": (
        f"experiment=floding: unknown experiment (did you mean flooding?); --help lists all {len(EXPERIMENTS)}"
    ),
    "experiment=zzz": f"experiment=zzz: unknown experiment; --help lists all {len(EXPERIMENTS)}",
    "experiment=zzz model=cnn": f"experiment=zzz: unknown experiment; --help lists all {len(EXPERIMENTS)}",
    "model=CNN": f"model=CNN: unknown model (did you mean cnn?); --help lists all {len(MODELS)}",
    "dataset=MNIST": f"dataset=MNIST: unknown dataset (did you mean mnist?); --help lists all {len(DATASETS)}",
    "experiment=cnn": "experiment=cnn: unknown experiment; did you mean model=cnn?",
    "model=flooding": "model=flooding: unknown model; did you mean experiment=flooding or regularization=flooding?",
    "hydra/launcher=jobib": (
        "hydra/launcher=jobib: unknown hydra/launcher (did you mean joblib?); "
        f"expected one of automatic, basic, joblib, {RAY}submitit_local, submitit_slurm, vectorized"
    ),
    # keys
    "lr=0.1": "lr: unknown key; did you mean optimizer.lr?",
    "epochs=3": "epochs: unknown key; did you mean trainer.epochs?",
    "trainr.epochs=3": "trainr.epochs: unknown key; did you mean trainer.epochs?",
    "trainer.epoch=3": "trainer.epoch: unknown key; did you mean trainer.epochs?",
    "Optimizer.lr=0.1": "Optimizer.lr: unknown key; did you mean optimizer.lr?",
    "optimizer.momentun=0.5": "optimizer.momentun: unknown key; did you mean optimizer.momentum?",
    "model.hiden=[5]": "model.hiden: unknown key; did you mean model.hidden?",
    "+model.hiden=[5]": (
        "model.hiden: unknown option of model=mlp (did you mean hidden?); "
        "expected one of hidden, activation, dropout, batch_norm"
    ),
    "+model.zzz=5": "model.zzz: unknown option of model=mlp; expected one of hidden, activation, dropout, batch_norm",
    "zzz=3": "zzz: unknown key; --cfg job shows all keys",
    "modle=cnn": "modle: unknown key; did you mean model=cnn?",
    "~modle": "modle: unknown key; did you mean model?",
    "experimant=flooding": "experimant: unknown key; did you mean experiment=flooding?",
    "optimzer=adam": "optimzer: unknown key; did you mean optimizer=adam?",
    "optimiser=adam": "optimiser: unknown key; did you mean optimizer=adam?",
    "datset=digts": "datset: unknown key; did you mean dataset=digits?",
    "SEED=3": "SEED: unknown key; did you mean seed?",
    "trainer.zzz=3": "trainer.zzz: unknown key; --cfg job --package trainer lists all 22",
    "modell.hidden=[3]": "modell.hidden: unknown key; did you mean model.hidden?",
    "model.lr=3": "model.lr: unknown key; did you mean optimizer.lr?",
    "optimizer/lr=3": "optimizer/lr: unknown key; did you mean optimizer.lr?",
    "trainer-epochs=3": "trainer-epochs: unknown key; did you mean trainer.epochs?",
    "optimizer.lr.x=3": "optimizer.lr.x: unknown key; optimizer.lr is a single value",
    "optimizer.betas=[0.9,1]": (
        "optimizer.betas: unknown key; optimizer.betas belongs to optimizer=adam or optimizer=adamw"
    ),
    "bb=3": "bb: unknown key; did you mean b (with experiment=flooding)?",
    "hydra.launcher.n_jobs=4": (
        "hydra.launcher.n_jobs: unknown key; hydra.launcher.n_jobs belongs to hydra/launcher=joblib"
    ),
    "hydra.run.dri=x": "hydra.run.dri: unknown key; did you mean hydra.run.dir?",
    "hydra/lancher=joblib": "hydra/lancher: unknown key; did you mean hydra/launcher=joblib?",
    "hydra.sweeper.params.b=1": (
        "hydra.sweeper.params.b: unknown key; hydra.sweeper.params is null; did you mean +hydra.sweeper.params.b?"
    ),
    "+optim@foo=sgd": "+optim@foo=sgd: unknown group optim; did you mean optimizer?",
    # the override that is wrong, and not one before it
    "dataset=image_folder dataset.root=. optimizer.lrr=1": "optimizer.lrr: unknown key; did you mean optimizer.lr?",
    "optimizer={lr:0.1} trainer.epoch=3": "trainer.epoch: unknown key; did you mean trainer.epochs?",
    "+optimizer.dampening=0.1 optimizer.dampening=0.2 lrr=1": "lrr: unknown key; did you mean optimizer.lr?",
    "b=0.1": "b: unknown key; b belongs to experiment=flooding",
    "experiment=mnist_mlp b=0.1": "b: unknown key; b belongs to experiment=flooding",
    "+b=0.1": "b: unused key; no value in this config reads it; b belongs to experiment=flooding",
    "+bb=1": "bb: unused key; no value in this config reads it; did you mean b (with experiment=flooding)?",
    "experiment=flooding +bb=1": "bb: unused key; no value in this config reads it; did you mean b?",
    "+lr=0.1": "lr: unused key; no value in this config reads it; did you mean optimizer.lr?",
    "experiment=init_study init=he d=0.1": (
        "d: unused key; the experiment reads it only in init.d, which is overridden"
    ),
    "experiment=logistic_separable size=full trainer.epochs=3": (
        "size: unused key; the experiment reads it only in trainer.epochs, which is overridden"
    ),
    # values of the keys that an experiment adds
    "experiment=init_study depth=two": (
        "width=50, depth=two (model.hidden): two must be a whole number from 0 to 10000"
    ),
    "experiment=init_study d=abc": "d=abc (init.d): must be a number or 'xavier'",
    "experiment=init_study d=0": "d=0 (init.d): must be greater than 0 or 'xavier'",
    "experiment=logistic_separable penalty=l3": (
        "penalty=l3: unknown penalty (did you mean l2 or l1?); expected one of none, l2, l1"
    ),
    "experiment=optimizers size=ful": "size=ful: unknown size (did you mean full?); expected one of quick, full",
    # syntax
    "optimizer.lr=0.1,0.2": (
        "optimizer.lr=0.1,0.2: a sweep over several values needs -m; expected optimizer.lr=[...] for a list"
    ),
    "seed=range(3)": "seed=range(3): a sweep over several values needs -m; expected seed=[...] for a list",
    "nonsense": "nonsense: expected key=value",
    "flooding": "flooding: expected key=value; did you mean experiment=flooding or regularization=flooding?",
    "mpl": "mpl: expected key=value; did you mean model=mlp?",
    "trian experiment=flooding": "trian: expected key=value; did you mean dlhw train?",
    "comapre outputs/x": "comapre: expected key=value; did you mean dlhw compare?",
    "experiment=flooding compare": "compare: expected key=value; compare must be the first word after dlhw",
    "help": "help: expected key=value; did you mean --help?",
    "experiment flooding": "experiment flooding: expected key=value; did you mean experiment=flooding?",
    "trainer.epochs 3": "trainer.epochs 3: expected key=value; did you mean trainer.epochs=3?",
    "trainer.epochs": "trainer.epochs: expected key=value; did you mean trainer.epochs=...?",
    "trainer.epochs:3": "trainer.epochs:3: expected key=value; did you mean trainer.epochs=3?",
    "b = 0.05": "b = 0.05: must not have spaces around =; expected b=0.05",
    "b =0.05": "b =0.05: must not have spaces around =; expected b=0.05",
    "name= b": "name= b: must not have spaces around =; expected name=b",
    "optimizer.lr=0.1 a=[": "a=[: invalid value; [ and ] do not match",
    "name=a(b)": "name=a(b): invalid value; quote text once for the shell and once for Hydra: name=\"'...'\"",
    "optimizer.lr='0.1": "optimizer.lr='0.1: invalid value; a quote (') is not closed",
    "optimizer.lr=${..}": "optimizer.lr=${..}: invalid interpolation; expected ${key}, or \\${...} for text",
    "trainer.rates=[1.5]": "trainer.rates=[1.5]: must be a mapping, such as {name: value}",
    "hydra.mode=MULTI": "hydra.mode=MULTI: Invalid value 'MULTI', expected one of [RUN, MULTIRUN]",
    "+model._target_=x": "+model._target_=x: model._target_ already exists; remove the +",
    "seed=null": "seed=null: must be a whole number from 0 to 9223372036854775807",
}


@pytest.mark.parametrize(("line", "message"), INVALID.items(), ids=INVALID)
def test_invalid_command_line_has_one_line_per_error(line: str, message: str) -> None:
    assert error_message(*line.split()) == message


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("+model=mlp", "+model=mlp"),
        ("=3", "=3"),
        ("~model", "model"),
        ("model=null", "model="),
        ("experiment=null", "experiment="),
        ("optimizer.lr=${foo}", "optimizer.lr"),
        ("trainer.epochs=true", "trainer.epochs="),
        ("optimizer=adam optimizer.betas=[0.9]", "optimizer.betas="),
    ],
)
def test_unusual_errors_have_one_line_that_starts_with_the_override(line: str, start: str) -> None:
    message = error_message(*line.split())
    assert message.startswith(start)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("line", ["b = 0.05", "b =0.05"])
def test_spaces_around_equals_are_an_error(line: str) -> None:
    assert error_message(line) == f"{line}: must not have spaces around =; expected b=0.05"


@pytest.mark.parametrize("text", ["Zürich", "データ", "a~b", "x#1", "<y>", "R&D!"])
def test_text_with_characters_that_hydra_rejects_is_a_value(text: str) -> None:
    cfg = program.compose("dataset=image_folder", f"dataset.root={text}")
    assert cfg.dataset.root == text


def test_option_with_an_accent_is_unknown() -> None:
    with pytest.raises(UsageError, match="unknown model; --help lists all"):
        program.compose("model=modèle")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "model.hidden=[]",
        "optimizer.lr=0",
        "experiment=flooding b=0",
        "+optimizer.dampening=0.1",
        "optimizer=torch optimizer.name=NAdam +optimizer.momentum_decay=0.01",
        "experiment=flooding model=cnn optimizer=adamw scheduler=cosine",
        "++optimizer.lr=0.3",
        "hydra.run.dir=here",
        "experiment=optimizers size=full trainer.epochs=3",
        "experiment=optimizers sizes.quick.rates='1' trainer.epochs=3",
        "experiment=init_study init=he",
    ],
)
def test_valid_command_line_has_no_message(line: str) -> None:
    assert error_message(*line.split()) == ""


def test_several_values_are_valid_in_a_sweep() -> None:
    assert error_message("optimizer.lr=0.1,0.2", sweep=True) == ""


FLOAT_TEXTS = st.one_of(
    st.floats().map(repr),
    st.floats().map(lambda value: f"{value:.3g}"),
    st.integers().map(str),
    st.text("0123456789.eE+-", min_size=0, max_size=8),
    st.sampled_from(["nan", "-nan", ".nan", "inf", "-inf", "infinity", "1e400", "-0.0", "null", "1e-400"]),
)


@settings(max_examples=30, deadline=None)
@given(text=FLOAT_TEXTS)
@example(text="0.1")
@example(text="-1")
def test_any_text_for_the_learning_rate_is_used_or_has_a_one_line_message(text: str) -> None:
    try:
        optimizer = build(compose(f"optimizer.lr={text}"), "optimizer", params=[torch.zeros(1)])
    except UsageError as error:
        message = str(error)
    else:
        assert optimizer.param_groups[0]["lr"] == float(text) >= 0
        return
    assert message.startswith("optimizer.lr=")
    assert len(message.splitlines()) == 1
