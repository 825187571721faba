"""The commands in the README and the documentation run, each on a small dataset and for two steps."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig

from dlhw import new
from dlhw.cli.verbs import VERBS, module_of
from dlhw.sweeps.expansion import expand
from support.commands import dlhw
from support.composing import compose_with_hydra
from support.pictures import folder_of, photo
from support.processes import Ended, Process, environment

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
PROGRAM = rf"(?:uv run )?(?:python -m (?P<module>dlhw\.\w+)|dlhw(?: (?P<verb>{'|'.join(VERBS)}))?) (?P<arguments>.+)"

FEW_STEPS = ("trainer.epochs=1", "trainer.steps_per_epoch=2", "trainer.batch_size=4", "trainer.device=cpu")
"""Overrides that are appended to every command that trains, unless it overrides these keys itself."""
SUBSTITUTES = {"mnist": "digits", "fashion_mnist": "digits", "kmnist": "digits", "boston": "diabetes"}
"""Similar datasets without a download, by the dataset that needs one."""
SMALL_PICTURES = {
    "face_mask": ("dataset.resize=20", "dataset.crop=16"),
    "hymenoptera": ("dataset.resize=20", "dataset.crop=16"),
    "image_folder": ("dataset.resize=20", "dataset.crop=16"),
}
SMALL_STUDIES = {
    "activation_slope": "study.draws=10 study.width=30 study.depth=20",
    "alexnet_classify": "study.resize=80 study.crop=70",
    "alexnet_features": "study.resize=80 study.crop=70",
    "backprop_depth": "study.draws=4 study.depth=8",
    "conv_backprop": "study.draws=5",
    "dropout_penalty": "study.draws=2000 study.rates=[0.1,0.5] study.hidden=5",
    "hypergradient": "study.rates=10 study.steps=[1,3,10] study.repeats=3 study.joint_steps=10",
    "jacobian": "study.repeats=4 study.warmup=1 study.draws=5",
    "least_squares_gd": "study.draws=8 study.iterations=60 study.rates=12",
    "logcosh_gradients": "study.draws=10 study.steps=12",
    "momentum_range": "study.steps=200 study.points=14",
    "pass_cost": "study.widths=[8,4] study.channels=[2] study.side=4 study.inputs=6 study.batch=3 study.repeats=2",
    "playground_prune": "study.seeds=2 study.epochs=3 study.retrain_epochs=2 study.widths=[4] study.smaller=[2]",
    "projection": "study.draws=20",
    "ray_tune": "study.trials=2 trainer.epochs=2",
    "separability": "study.draws=4",
    "sgd_rate": "study.runs=30 study.steps=60",
}
MISSING = {
    "model.weights": ("model.weights=FILE", "pretrained weights are not part of this project"),
    "dataset.download": ("dataset.download=false", "the dataset is not part of this project"),
}
"""Overrides for files that are not part of this project, by the key that the error names, each with the reason.

A command that needs such a file is run with the override. It must end with the error about this key, because all
values are validated before a file is read.
"""


@dataclass(frozen=True)
class Command:
    module: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join((self.module, *self.words))

    @property
    def experiment(self) -> str | None:
        """The name of the experiment; None without one."""
        return next((word.partition("=")[2] for word in self.words if word.startswith("experiment=")), None)

    def overrides(self, key: str) -> bool:
        """Return whether the command line overrides this key."""
        return any(word.lstrip("+~").partition("=")[0] == key for word in self.words)


def commands(text: str) -> Iterator[Command]:
    """Yield the commands in the indented lines, fenced blocks and inline code of a page, without their comments."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = [line.rpartition("&& ")[2] for line in re.findall(r"^(?:    |\$ )?(\S.*)$", text, re.MULTILINE)]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in [*lines, *inline]:
        if match := re.fullmatch(PROGRAM, line.strip()):
            words = shlex.split(re.split(r"\s{2,}|\s[#|]\s", match["arguments"])[0])
            module = match["module"] or module_of(match["verb"] or "train")
            trains = module in ("dlhw.train", "dlhw.find_lr")
            if not trains or words[0][0] in "-~+" or "=" in words[0] or "/" in words[0]:  # otherwise it is a sentence
                yield Command(module, tuple(words))


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page.read_text())))
CONFIG_FILE = re.compile(
    r"`([\w/]+/experiment/\w+\.yaml)`.*?^( *)(# @package .*?)(?=^```|^(?!\2)\S|\Z)", re.DOTALL | re.MULTILINE
)
FILES = {
    path: textwrap.dedent(indent + text)
    for page in PAGES
    for path, indent, text in CONFIG_FILE.findall(page.read_text())
}
"""The config files that pages print, by path."""


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures, runs and sweeps that the commands use."""
    at = tmp_path_factory.mktemp("documentation")
    small = ("dataset=digits", "model.hidden=[4]", *FEW_STEPS, "trainer.checkpoint_seconds=0")
    runs = {
        "outputs/flooding/2026-11-21_10-00-00": ("experiment=flooding", *small),
        "outputs/mnist_mlp/2026-11-21_09-00-00": ("experiment=mnist_mlp", *small),
        "outputs/finetune_resnet34/2026-11-21_11-34-38": (
            *("dataset=image_folder", "dataset.root=DIR", "model=cnn", "model.channels=[2]", "model.kernel=3"),
            *(*SMALL_PICTURES["image_folder"], *FEW_STEPS, "trainer.steps_per_epoch=1"),
        ),
    }
    write_own_data(at)
    folder_of(at / "DIR", {"cats": 10, "dogs": 10})
    folder_of(at / "photos", {"cats": 1})
    for part, first in (("train", 0), ("val", 100)):
        folder_of(at / "data" / "hymenoptera_data" / part, {"ants": 10, "bees": 10}, start=first)
    for label, folder in enumerate(("with_mask", "without_mask")):
        (at / "data" / "face_mask" / folder).mkdir(parents=True)
        for number in range(20):
            name = f"{number}-with-mask.jpg" if folder == "with_mask" else f"{number}.jpg"
            photo(1000 * label + number).save(at / "data" / "face_mask" / folder / name)
    photo(5000).save(at / "data" / "face_mask" / "with_mask" / "augmented_image_0.jpg")  # excluded by default
    for name in ("cat.jpg", "ant.jpg", "zebra.jpg", "samoyed.jpg"):
        photo(1).save(at / name)
    for path, text in FILES.items():
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        (at / path).write_text(text)
    for path, overrides in runs.items():
        ended = dlhw(*overrides, f"hydra.run.dir={path}", at=at)
        assert ended.code == 0, ended.err
    ended = dlhw("-m", "experiment=flooding", *small, "b=0,0.02", "hydra.sweep.dir=outputs/levels", at=at)
    assert ended.code == 0, ended.err
    shutil.copytree(at / "outputs" / "levels", at / "outputs" / "flooding" / "2026-11-21_11-00-00")
    return at


def write_own_data(at: Path) -> None:
    """Write the table, the arrays and the IDX files of the page about own data."""
    random = np.random.default_rng(0)
    columns = dict(
        zip(("sepal_length", "sepal_width", "petal_length", "petal_width"), random.random((4, 60)), strict=True)
    )
    pd.DataFrame({**columns, "species": ["setosa", "versicolor", "virginica"] * 20}).to_csv(
        at / "iris.csv", index=False
    )
    rooms = {"id": range(60), "rooms": random.integers(1, 6, 60), "heating": ["gas", "oil"] * 30}
    pd.DataFrame({**rooms, "price": random.random(60)}).to_csv(at / "homes.csv", index=False)
    pd.DataFrame({"acid": random.random(60), "quality": [5, 6, 7] * 20}).to_csv(at / "wine.csv", index=False)
    pictures, labels = random.integers(0, 256, (60, 12, 12), np.uint8), np.arange(60, dtype=np.uint8) % 3
    np.savez(at / "arrays.npz", x=pictures, y=labels)
    (at / "letters").mkdir()
    for name, array in (("train-images-idx3-ubyte", pictures), ("train-labels-idx1-ubyte", labels)):
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (at / "letters" / name).write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def execute(command: Command, *more: str, at: Path) -> Ended:
    """Run a command in the folder ``at``, with more overrides at its end."""
    sweep = command.module == "dlhw.compare"
    words = [re.sub(r"(outputs/\w+)/\.\.\.", lambda match: newest(at, match[1], sweep), word) for word in command.words]
    env = environment(HYDRA_FULL_ERROR="0", TORCH_HOME=str(at / "torch"))
    return Process("-m", command.module, *words, *more, at=at, env=env).end()


def newest(at: Path, folder: str, sweep: bool) -> str:
    """Return the path of the newest run or sweep in a folder; a page writes it as three dots."""
    paths = [path for path in (at / folder).iterdir() if (path / "multirun.yaml").exists() == sweep]
    return max(paths).relative_to(at).as_posix()


def few_values(cfg: DictConfig, command: Command) -> Iterator[str]:
    """Yield overrides for the sweep of an experiment: two values of its first key, one of each other key."""
    count = 2
    for key, values in (cfg.hydra.sweeper.params or {}).items():
        if key == "start":  # the run with the initial weights does not exist
            yield "start=null"
            continue
        if not command.overrides(key) and values is not None:
            plans = expand([f"{key}={values}"], [])[:count]
            yield f"{key}=" + ",".join(plan.overrides[0].partition("=")[2] for plan in plans)
            count = 1
    if cfg.hydra.sweeper.get("confirm"):
        yield "hydra.sweeper.confirm=1"


def shortened(command: Command, cfg: DictConfig) -> tuple[Command, tuple[str, ...]]:
    """Return the command without unavailable datasets, and overrides that make it fast."""
    dataset = cfg.hydra.runtime.choices.dataset
    words = [word for word in command.words if word != f"dataset={dataset}" or dataset not in SUBSTITUTES]
    more = list(few_values(cfg, command))
    if cfg.study.get("_target_") is not None:
        study = cfg.study._target_.rpartition(".")[2]
        more += SMALL_STUDIES.get(study, "").split()
        reads_data = study in ("samples", "cost")
    else:
        fixed_order = cfg.trainer.order == "fixed"  # needs all batches of an epoch
        more += [line for line in FEW_STEPS if not (fixed_order and "steps_per_epoch" in line)]
        more += ["dataset.points=40"] if dataset == "playground" else []
        reads_data = True
    if reads_data:
        more += [f"dataset={SUBSTITUTES[dataset]}"] if dataset in SUBSTITUTES else []
        more += SMALL_PICTURES.get(dataset, ())
    return Command(command.module, tuple(words)), tuple(
        line for line in more if not command.overrides(line.partition("=")[0])
    )


def missing_key(cfg: DictConfig) -> str | None:
    """Return the key of ``MISSING`` for the files that the command needs but that are not available, if any."""
    reads_model = cfg.study.get("_target_") is None or cfg.study._target_.startswith(
        ("dlhw.studies.alexnet", "dlhw.studies.fool")
    )
    if reads_model and cfg.model.get("weights") is not None:
        return "model.weights"
    return "dataset.download" if cfg.hydra.runtime.choices.dataset == "cifar10" else None


def printed_config(command: Command) -> str | None:
    """Return the path of the config file that a page prints for the experiment of a command, if any."""
    return next((path for path in FILES if path.endswith(f"experiment/{command.experiment}.yaml")), None)


def test_pages_contain_commands_of_every_program_and_a_config_file() -> None:
    modules = {command.module for command in COMMANDS}
    assert modules >= {"dlhw.train", "dlhw.compare", "dlhw.predict"}
    assert len(COMMANDS) > 50
    assert any(FILES)


README = set(commands(PAGES[0].read_text()))
PARAMETERS = [
    # test_experiments runs every experiment without overrides
    pytest.param(
        command,
        id=str(command),
        marks=[pytest.mark.slow] * (command not in README or command.words == (f"experiment={command.experiment}",)),
    )
    for command in COMMANDS
]


@pytest.mark.parametrize("command", PARAMETERS)
def test_documented_command_runs(command: Command, example_folder: Path, tmp_path: Path) -> None:
    at = tmp_path / "here"
    shutil.copytree(example_folder, at)
    if command.module != "dlhw.train" or {"--help", "--cfg"} & set(command.words):
        more = ["study.steps=20", "study.seeds=1"] if command.module == "dlhw.find_lr" else []
        if command.module == "dlhw.new":
            shutil.rmtree(at / command.words[0], ignore_errors=True)
        ended = execute(command, *more, at=at)
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
        return
    overrides = [word for word in command.words if "=" in word or word[0] == "~"]
    if command.overrides("resume"):
        path = at / newest(at, "outputs/flooding", sweep=False)
        (path / "summary.json").unlink()
        assert execute(command, at=at).code == 0
        assert (path / "summary.json").exists()
        return
    if path := printed_config(command):
        folder = () if "--config-dir" in command.words else ("--config-dir", str(Path(path).parents[1]))
        trains = "model" in FILES[path] or "optimizer" in FILES[path]
        ended = execute(command, *folder, *(("dataset=digits", *FEW_STEPS) if trains else ()), at=at)
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
        return
    if "--config-dir" in command.words:
        with contextlib.chdir(at):
            new.write(command.words[command.words.index("--config-dir") + 1])
        ended = execute(command, *FEW_STEPS, at=at)
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
        return
    cfg = compose_with_hydra(*overrides, sweep=True)
    key = missing_key(cfg)
    command, more = shortened(command, cfg)
    if key is None:
        ended = execute(command, *more, at=at)
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
        assert list(at.glob("outputs/*/*/summary.json")) or list(at.glob("outputs/*/*/*/summary.json"))
    else:
        if "-m" in command.words:  # the first job, because all jobs have the same error
            command = Command(command.module, expand([], overrides)[0].overrides)
        override, reason = MISSING[key]
        more = tuple(line for line in more if line.partition("=")[0] != key)
        ended = execute(command, *more, *([] if command.overrides(key) else [override]), at=at)
        assert ended.code == 1, reason
        name = {"dataset.download": "dataset=cifar10"}.get(key, key)
        assert any(line.startswith(name) or f": {name}" in line for line in ended.lines), ended.err
