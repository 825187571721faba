"""Configs: every file composes and is legal, which value wins, what each mistake is answered with."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

import dlhw
from dlhw import train
from dlhw.cli import composition, program
from dlhw.cli.build import PROGRAM_ARGUMENTS, build, make_model, validate
from dlhw.data.tabular import _regression
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.runs import identity
from dlhw.runs.record import Record, read_summary
from support.composing import Compose
from support.composing import compose as composed

CONF = composition.conf_dir()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
EXPERIMENTS = [path.stem for path in FILES if path.parent.name == "experiment"]
MODELS = [path.stem for path in FILES if path.parent.name == "model"]
STUDIES = [path.stem for path in FILES if path.parent.name == "study"]
OF_STUDIES = {*STUDIES, "mask_samples", "cifar_samples"}
"""Experiments that train nothing."""
IMAGES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "kmnist": (1, 28, 28)}
SHAPES = IMAGES | {"separable": (2,), "clusters": (5,), "boston": (13,), "diabetes": (10,), "california_housing": (8,)}
NEEDED = {
    "optimizer/torch.yaml": ["optimizer.name=NAdam"],
    "init/from_run.yaml": ["init.run=there"],
    "dataset/image_folder.yaml": ["dataset.root=there"],
    "model/torchvision.yaml": ["model.architecture=resnet18"],
}  # files that leave an option to the user

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def mistake(compose: Compose) -> Mistake:
    """``mistake("optimizer.lr=-1")``: the error message for a command line; empty if it is valid."""

    def message(*overrides: str, sweep: bool = False) -> str:
        try:
            if all(re.fullmatch(r"(?!hydra)\w+(\.\w+)*=[^,]*", line) for line in overrides):
                train.check(composed(*overrides), overrides)
                return ""
            cfg = compose(*overrides, sweep=sweep)
            train.check(cfg, cfg.hydra.overrides.task)
        except UsageError as error:
            return str(error)
        return ""

    return message


# --- files ------------------------------------------------------------------------------------------------


def test_every_config_file_lies_in_a_group_that_something_selects() -> None:
    (selected,) = [cfg["defaults"] for cfg in [yaml.safe_load((CONF / f"{composition.CONFIG_NAME}.yaml").read_text())]]
    groups = {str(next(iter(entry))).removeprefix("override ").strip("/") for entry in selected if entry != "_self_"}
    folders = {path.parent.as_posix() for path in FILES} - {"."}
    assert folders - {"hydra/launcher"} <= groups | {"experiment"}  # a launcher is selected on the command line
    assert {path.as_posix() for path in FILES if path.parent == Path()} == {f"{composition.CONFIG_NAME}.yaml"}
    for group in groups - {"hydra/launcher"}:
        assert group in folders or group.startswith("hydra/"), group
    counts = Counter(path.parent.as_posix() for path in FILES)  # a glob that finds nothing tests nothing
    assert all(counts[group] >= least for group, least in {"experiment": 40, "study": 20, "model": 10}.items())


def test_every_group_has_its_row_of_arguments_given_by_the_program() -> None:
    groups = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert groups - {"experiment", "hydra"} == set(PROGRAM_ARGUMENTS)


@pytest.mark.parametrize("file", [path for path in FILES if path.parts[0] != "hydra"], ids=lambda path: path.as_posix())
def test_every_file_composes_and_its_options_are_those_of_its_target(compose: Compose, file: Path) -> None:
    group = [] if file.parent == Path() else [f"{file.parent.as_posix()}={file.stem}"]
    cfg = compose(*group, *NEEDED.get(file.as_posix(), []))
    validate(cfg)
    choices = cfg.hydra.runtime.choices
    if group:
        assert choices[file.parent.as_posix()] == file.stem
    for part in ("help", "hydra_logging", "job_logging"):
        assert choices[f"hydra/{part}"] == "dlhw"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_opens_with_its_question_and_command_and_carries_its_name(compose: Compose, name: str) -> None:
    package, question, *rest = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert package == "# @package _global_"
    assert question.startswith("# ")
    assert "?" in question
    assert any(line.startswith(f"#   python -m dlhw.train experiment={name}") for line in rest)
    assert "_target_" not in "\n".join(rest)
    assert compose(f"experiment={name}").name == name


def test_the_readme_lists_every_experiment_with_its_source_and_each_has_its_place_on_a_sheets_page() -> None:
    readme = (CONF.parent / "README.md").read_text()
    pages = "".join(path.read_text() for path in sorted((CONF.parent / "docs" / "sheets").glob("*.md")))
    for name in EXPERIMENTS:
        question = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
        source = question.rpartition("(")[2].rstrip(")")
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}`")]
        assert row.endswith(f"| {source} |")
        assert f"    python -m dlhw.train experiment={name}" in pages, name
    images = [line.rpartition("(")[2].rstrip(")") for line in pages.splitlines() if line.startswith("![")]
    for image in images:
        assert (CONF.parent / "docs" / "sheets" / image).is_file(), image


def synthetic(
    *, data_dir: str, seed: int, mean: float, std: float, validation_fraction: float, download: bool
) -> Dataset:
    """Noise in MNIST's shape: 32 training samples, which are two steps of 16, 8 to validate, 8 to test."""

    def split(count: int) -> Split:
        pixels = torch.Generator().manual_seed(count)
        x = torch.randint(256, (count, 1, 28, 28), generator=pixels, dtype=torch.uint8)
        return Split(x, torch.arange(count) % 10)

    return assemble(
        "synthetic",
        split(40),
        split(8),
        seed=seed,
        validation_fraction=validation_fraction,
        mean=mean,
        std=std,
        largest=255,
        classes=tuple("0123456789"),
    )


def table(*, data_dir: str, seed: int, test_fraction: float, validation_fraction: float, download: bool) -> Dataset:
    """Noise in Boston's shape: 32 training samples, 8 to validate, 10 to test."""
    source = torch.Generator().manual_seed(0)
    whole = Split(torch.randn(50, 13, generator=source), torch.randn(50, generator=source))
    return _regression("table", whole, seed=seed, test_fraction=0.2, validation_fraction=0.2)


def photos(**options: Any) -> Dataset:
    """Noise in colour, 32 pixels wide, of two classes and without a test part: 32 training samples, 8 to validate."""
    pixels = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 3, 32, 32), generator=pixels, dtype=torch.uint8)
    whole = Split(x, torch.arange(40) % 2)
    made = assemble("photos", whole, whole, seed=options["seed"], validation_fraction=0.2, mean=options["mean"],
                    std=options["std"], largest=255, classes=("no", "yes"))  # fmt: skip
    return replace(made, test=None)


SMALL = {  # 32 training samples in the shape of the experiment's own
    "mnist": [f"dataset._target_={__name__}.synthetic", "dataset.validation_fraction=0.2"],
    "separable": ["dataset.n=40", "dataset.validation_fraction=0.2"],
    "clusters": ["dataset.n=40", "dataset.validation_fraction=0.2", "trainer.steps_per_epoch=2"],
    "boston": [f"dataset._target_={__name__}.table"],
    "cifar10": [f"dataset._target_={__name__}.photos", "report=none"],
    "face_mask": [f"dataset._target_={__name__}.photos", "report=none"],
    "hymenoptera": [f"dataset._target_={__name__}.photos", "report=none"],
}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in OF_STUDIES])
def test_every_training_experiment_runs_two_steps(compose: Compose, tmp_path: Path, name: str) -> None:
    whole = compose(f"experiment={name}")
    cfg = compose(
        f"experiment={name}",
        *SMALL[whole.hydra.runtime.choices.dataset],
        *(["model.weights=null"] if "weights" in whole.model else []),
        "trainer.epochs=1",
        "trainer.batch_size=16",
        "trainer.device=cpu",
        f"data_dir={tmp_path}",
    )
    with open_dict(cfg):
        del cfg["hydra"]  # as in a run
    train.run(cfg, Record(tmp_path))
    summary = read_summary(tmp_path)
    assert summary["status"] == "finished"
    assert summary["experiment"] == name
    assert summary["final"]["step"] == 2
    assert OmegaConf.load(tmp_path / "config.yaml") == OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


MISFITS = {
    "loss=mse": "loss=mse: dataset=digits is for classification; expected loss=cross_entropy",
    "dataset=diabetes": "loss=cross_entropy: dataset=diabetes is for regression; expected loss=mse or log_cosh",
    "dataset=diabetes loss=mse": (
        "trainer.monitor=val_error_percent: dataset=diabetes is for regression; expected val_mse or val_loss"
    ),
    "trainer.monitor=val_mse": (
        "trainer.monitor=val_mse: dataset=digits is for classification; expected val_error_percent or val_loss"
    ),
    "dataset=diabetes loss=mse trainer.monitor=val_mse probe=layers": (
        "probe=layers: needs classes, dataset=diabetes is for regression; expected probe=none"
    ),
    "trainer.steps_per_epoch=10": (
        "trainer.steps_per_epoch=10: must be at most 9, the number of batches of dataset=digits with "
        "trainer.batch_size=128"
    ),
    "model=mlp_by_hand probe=layers": (
        "probe=layers: needs dense or convolutional modules, which ByHand does not call; expected probe=none"
    ),
}


@pytest.mark.parametrize(("line", "answer"), MISFITS.items(), ids=MISFITS)
def test_parts_that_do_not_fit_together_are_refused_in_one_line(
    compose: Compose, tmp_path: Path, line: str, answer: str
) -> None:
    cfg = compose(*line.split(), "trainer.device=cpu", "trainer.epochs=1")
    with open_dict(cfg):
        del cfg["hydra"]
    with pytest.raises(UsageError) as raised:
        train.run(cfg, Record(tmp_path))
    assert str(raised.value) == answer


# --- which value wins -------------------------------------------------------------------------------------


def test_experiment_wins_over_group_defaults(compose: Compose) -> None:
    assert compose().trainer.epochs == 20
    cfg = compose("experiment=mnist_mlp")
    assert cfg.trainer.epochs == 500
    assert cfg.hydra.runtime.choices.dataset == "mnist"
    assert cfg.hydra.runtime.choices.optimizer == "momentum"
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (0.1, 0.9)


def test_command_line_wins_over_both(compose: Compose) -> None:
    for overrides in (
        ("experiment=mnist_mlp", "trainer.epochs=3", "optimizer.lr=0.5", "dataset=digits"),
        ("trainer.epochs=3", "optimizer.lr=0.5", "dataset=digits", "experiment=mnist_mlp"),
    ):
        cfg = compose(*overrides)
        assert (cfg.trainer.epochs, cfg.optimizer.lr) == (3, 0.5)
        assert cfg.dataset._target_ == "dlhw.data.digits.digits"


def test_flooding_inherits_and_its_knob_sets_the_level(compose: Compose) -> None:
    parent, child = compose("experiment=mnist_mlp"), compose("experiment=flooding", "b=0.02")
    assert child.regularization.flood == 0.02
    assert compose("experiment=flooding").regularization.flood == 0.05
    for group in ("dataset", "model", "init", "loss", "optimizer", "scheduler", "trainer"):
        assert child[group] == parent[group]


def test_group_chosen_on_the_command_line_drops_the_experiments_values_for_it(compose: Compose) -> None:
    swapped = compose("experiment=mnist_mlp", "optimizer=adam")
    assert swapped.optimizer == compose("optimizer=adam").optimizer
    assert swapped.optimizer.lr == 0.001
    assert swapped.model.hidden == [500]  # the other groups keep theirs
    assert swapped.trainer.epochs == 500
    assert compose("experiment=mnist_mlp", "optimizer=adam", "optimizer.lr=0.3").optimizer.lr == 0.3


def test_inherited_values_are_dropped_too(compose: Compose) -> None:
    swapped = compose("experiment=flooding", "model=cnn")
    assert swapped.model == compose("model=cnn").model
    assert swapped.regularization.flood == 0.05
    assert compose("experiment=flooding", "regularization=none").regularization.flood == 0.0


def test_naming_the_experiments_own_option_changes_nothing(compose: Compose) -> None:
    plain = compose("experiment=mnist_mlp")
    for same in ("model=mlp", "optimizer=momentum", "dataset=mnist", "trainer=default", "scheduler=none"):
        named = compose("experiment=mnist_mlp", same)
        for cfg in (plain, named):
            with open_dict(cfg):
                cfg.pop("hydra", None)
        assert named == plain


@pytest.mark.parametrize("model", ["cnn", "cnn_by_hand", "mlp", "mlp_by_hand"])
@pytest.mark.parametrize("dataset", IMAGES)
def test_every_model_takes_every_data_set_of_images(compose: Compose, dataset: str, model: str) -> None:
    cfg = compose(f"dataset={dataset}", f"model={model}")
    assert cfg.dataset == compose(f"dataset={dataset}").dataset
    assert cfg.model == compose(f"model={model}").model
    shape = SHAPES[dataset]
    assert make_model(cfg, shape=shape, outputs=10)(torch.zeros(4, *shape)).shape == (4, 10)


# --- mistakes ---------------------------------------------------------------------------------------------

MISTAKES = {
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
    "seed=-1": "seed=-1: must be a whole number, 0 or greater",
    "seed=1.5": "seed=1.5: must be a whole number, 0 or greater",
    "seed=abc": "seed=abc: must be a whole number, 0 or greater",
    "~model.hidden": "model.hidden: missing; model=mlp needs it",
    # two at once, in the order of the config's groups
    "trainer.batch_size=0 optimizer.lr=-1": (
        "optimizer.lr=-1: must be greater than or equal to 0\ntrainer.batch_size=0: must be greater than 0"
    ),
    "seed=-1 model.dropout=2 model.batch_norm=3": (
        "model.dropout=2: must be less than 1\n"
        "model.batch_norm=3: must be true or false\n"
        "seed=-1: must be a whole number, 0 or greater"
    ),
    # options
    "model=mpl": f"model=mpl: unknown model (did you mean mlp?); expected one of {', '.join(MODELS)}",
    "loss=hinge": (
        "loss=hinge: unknown loss; expected one of cross_entropy, cross_entropy_by_hand, log_cosh, mse, multi_margin"
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
    "model=": f"model=: unknown model; expected one of {', '.join(MODELS)}",
    "experiment=floding": (
        f"experiment=floding: unknown experiment (did you mean flooding?); expected one of {', '.join(EXPERIMENTS)}"
    ),
    "experiment=zzz": f"experiment=zzz: unknown experiment; expected one of {', '.join(EXPERIMENTS)}",
    "experiment=zzz model=cnn": f"experiment=zzz: unknown experiment; expected one of {', '.join(EXPERIMENTS)}",
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
    "b=0.1": "b: unknown key; b belongs to experiment=flooding",
    "experiment=mnist_mlp b=0.1": "b: unknown key; b belongs to experiment=flooding",
    "+b=0.1": "b: unused key; no value in this config reads it; b belongs to experiment=flooding",
    "+bb=1": "bb: unused key; no value in this config reads it; --cfg job shows all keys",
    "experiment=flooding +bb=1": "bb: unused key; no value in this config reads it; did you mean b?",
    "+lr=0.1": "lr: unused key; no value in this config reads it; did you mean optimizer.lr?",
    "experiment=init_study init=he d=0.1": (
        "d: unused key; the experiment reads it only in init.d, which is overridden"
    ),
    "experiment=logistic_separable size=full trainer.epochs=3": (
        "size: unused key; the experiment reads it only in trainer.epochs, which is overridden"
    ),
    # what an experiment's knobs take
    "experiment=init_study depth=two": ("width=50, depth=two (model.hidden): two must be a whole number, 0 or greater"),
    "experiment=init_study d=abc": "d=abc (init.d): must be a number or 'xavier'",
    "experiment=init_study d=0": "d=0 (init.d): must be greater than 0 or 'xavier'",
    "experiment=logistic_separable penalty=l3": "penalty=l3: unknown penalty; expected one of none, l2, l1",
    "experiment=optimizers size=ful": "size=ful: unknown size (did you mean full?); expected one of quick, full",
    # form
    "optimizer.lr=0.1,0.2": (
        "optimizer.lr=0.1,0.2: a sweep over several values needs -m; expected optimizer.lr=[...] for a list"
    ),
    "seed=range(3)": "seed=range(3): a sweep over several values needs -m; expected seed=[...] for a list",
    "nonsense": ("nonsense: invalid override; expected key=value, in quotes if it has spaces or commas"),
    "optimizer.lr=0.1 a=[": ("a=[: invalid override; expected key=value, in quotes if it has spaces or commas"),
}


@pytest.mark.parametrize(("line", "answer"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_is_answered_in_one_line_each(mistake: Mistake, line: str, answer: str) -> None:
    assert mistake(*line.split()) == answer


@pytest.mark.parametrize(
    ("line", "named"),
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
def test_odd_mistake_is_answered_in_one_line_that_names_it(mistake: Mistake, line: str, named: str) -> None:
    answer = mistake(*line.split())
    assert answer.startswith(named)
    assert len(answer.splitlines()) == 1


def test_unquoted_space_is_a_mistake(mistake: Mistake) -> None:
    assert mistake("my name=3") == (
        "my name=3: invalid override; expected key=value, in quotes if it has spaces or commas"
    )


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
def test_what_is_legal_passes(mistake: Mistake, line: str) -> None:
    assert mistake(*line.split()) == ""


def test_several_values_are_legal_in_a_sweep(mistake: Mistake) -> None:
    assert mistake("optimizer.lr=0.1,0.2", sweep=True) == ""


@pytest.mark.parametrize("overrides", [(), ("experiment=flooding", "b=0.2", "model=cnn")])
def test_compose_for_scripts_gives_what_the_command_line_gets(compose: Compose, overrides: tuple[str, ...]) -> None:
    assert program.compose(*overrides) == without_hydra(compose(*overrides))


def test_compose_for_scripts_raises_what_the_command_line_says() -> None:
    with pytest.raises(UsageError, match=r"^lr: unknown key; did you mean optimizer\.lr\?$"):
        program.compose("lr=0.1")


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
def test_any_number_for_the_rate_is_used_or_refused_in_one_line(text: str) -> None:
    try:
        optimizer = build(composed(f"optimizer.lr={text}"), "optimizer", params=[torch.zeros(1)])
    except UsageError as error:
        answer = str(error)
    else:
        assert optimizer.param_groups[0]["lr"] == float(text) >= 0
        return
    assert answer.startswith("optimizer.lr=")
    assert len(answer.splitlines()) == 1


# --- going on with a run ----------------------------------------------------------------------------------


@pytest.fixture
def stored(compose: Compose, tmp_path: Path) -> Callable[..., Path]:
    """``stored("model=cnn")``: a directory with the ``config.yaml`` that a run with these overrides leaves."""

    def store(*overrides: str) -> Path:
        cfg = compose(*overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        (tmp_path / "config.yaml").write_text(identity.to_yaml(cfg))
        return tmp_path

    return store


def without_hydra(cfg: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items() if name != "hydra"}


def test_start_of_a_run_is_found_from_anywhere(
    compose: Compose, stored: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "S" / "b=0,seed=1"
    start.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    directory = stored("init=from_run", "init.run=S/b=0,seed=1")
    given = compose("init=from_run", "init.run=S/b=0,seed=1")
    monkeypatch.chdir(start)
    assert compose(f"resume={directory}").init.run == str(start)
    assert not identity.same_run(given, directory)  # the same words name another directory here
    monkeypatch.chdir(tmp_path)
    assert identity.same_run(given, directory)


def test_resume_brings_back_the_config_of_the_run(compose: Compose, stored: Callable[..., Path]) -> None:
    directory = stored("experiment=flooding", "b=0.3", "model.hidden=[7]", "seed=4", "dataset=digits")
    cfg = compose(f"resume={directory}")
    before = without_hydra(OmegaConf.load(directory / "config.yaml"))
    assert without_hydra(cfg) == before | {"resume": str(directory)}
    assert cfg.hydra.run.dir == str(directory)
    assert cfg.hydra.output_subdir is None
    assert cfg.hydra.job.name == "flooding"


def test_resume_may_change_the_number_of_epochs_and_where_data_is(
    compose: Compose, stored: Callable[..., Path]
) -> None:
    directory = stored()
    before = without_hydra(compose(f"resume={directory}"))
    after = without_hydra(compose("trainer.epochs=50", f"resume={directory}", "data_dir=elsewhere"))
    assert after == before | {
        "data_dir": "elsewhere",
        "trainer": before["trainer"] | {"epochs": 50},
    }


def test_resume_takes_a_path_relative_to_where_one_stands(
    compose: Compose, stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stored()
    monkeypatch.chdir(directory.parent)
    assert compose(f"resume={directory.name}").resume == str(directory)


@pytest.mark.parametrize("override", ["optimizer.lr=0.2", "model=cnn", "seed=0", "+b=1", "experiment=flooding"])
def test_resume_refuses_to_change_anything_else(mistake: Mistake, stored: Callable[..., Path], override: str) -> None:
    assert mistake(f"resume={stored()}", override) == (
        f"{override}: invalid with resume, because a resumed run keeps its config; "
        "expected only data_dir and trainer.epochs"
    )


def test_resume_refuses_what_is_not_a_run(mistake: Mistake, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert mistake(f"resume={path}") == f"resume={path}: not a run directory (it has no config.yaml)"


def test_resume_refuses_more_epochs_for_a_schedule_laid_out_for_fewer(
    compose: Compose, mistake: Mistake, stored: Callable[..., Path]
) -> None:
    directory = stored("scheduler=cosine", "trainer.epochs=10")
    assert mistake(f"resume={directory}", "trainer.epochs=20") == (
        "trainer.epochs=20: the learning-rate schedule of this run depends on its number of epochs; expected 10"
    )
    assert compose(f"resume={directory}", "trainer.epochs=10").scheduler.epochs == 10


def test_resume_checks_the_values_it_may_change(mistake: Mistake, stored: Callable[..., Path]) -> None:
    directory = stored()
    assert mistake(f"resume={directory}", "trainer.epochs=0") == "trainer.epochs=0: must be greater than 0"


# --- imports ----------------------------------------------------------------------------------------------

SOURCE = Path(dlhw.__file__).parent

LEVELS = (
    {"sweeps", "compare", "predict"},
    {"train", "reading"},
    {"cli"},
    {"studies"},
    {"training", "views"},
    {"data", "models"},
    {"runs"},
    {"runtime"},
    {"errors", "intervals"},
)
"""Our modules and packages, from the top; each may import what is on a level below its own."""


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of our modules that a file imports; ``from dlhw import x`` is ``dlhw.x`` if that is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "dlhw")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            module = node.module or ""
            if module.split(".")[0] == "dlhw":
                for name in node.names:
                    path = SOURCE.parent.joinpath(*module.split("."), name.name)
                    is_module = path.is_dir() or path.with_suffix(".py").is_file()
                    yield f"{module}.{name.name}" if is_module else module


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own == "__init__":  # the public Python interface imports what it needs when it is called
        return
    others = {module.split(".")[1] for module in imported(ast.parse(path.read_text())) if "." in module} - {own}
    assert {other for other in others if level[other] <= level[own]} == set()
