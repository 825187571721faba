"""Every config file composes, and its options are valid for the function or class that it names."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from dlhw.cli.assembly import make_model
from dlhw.cli.build import PROGRAM_ARGUMENTS, validate
from dlhw.cli.composition import CONFIG_NAME
from dlhw.new import TEMPLATE
from support.commands import only
from support.composing import compose, compose_with_hydra
from support.config_files import CONF, FILES

IMAGE_SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "kmnist": (1, 28, 28)}
REQUIRED = {
    "study/ray_tune.yaml": ["+study.space={optimizer.lr:[0.1,0.2]}"],
    "optimizer/torch.yaml": ["optimizer.name=NAdam"],
    "init/from_run.yaml": ["init.run=there"],
    "dataset/idx.yaml": ["dataset.root=there"],
    "dataset/image_folder.yaml": ["dataset.root=there"],
    "dataset/npz.yaml": ["dataset.path=there"],
    "dataset/table.yaml": ["dataset.path=there", "dataset.target=y"],
    "model/torchvision.yaml": ["model.architecture=resnet18"],
}
"""Overrides of the options that have no default, by config file."""


def test_every_config_group_is_in_the_defaults_list() -> None:
    defaults = yaml.safe_load((CONF / f"{CONFIG_NAME}.yaml").read_text())["defaults"]
    groups = {str(next(iter(entry))).removeprefix("override ").strip("/") for entry in defaults if entry != "_self_"}
    folders = {path.parent.as_posix() for path in FILES} - {"."}
    assert folders - {"hydra/launcher"} <= groups | {"experiment"}  # a launcher is selected on the command line
    assert {path.as_posix() for path in FILES if path.parent == Path()} == {f"{CONFIG_NAME}.yaml"}
    for group in groups - {"hydra/launcher"}:
        assert group in folders or group.startswith("hydra/"), group
    counts = Counter(path.parent.as_posix() for path in FILES)  # the tests of this file need files
    assert all(counts[group] >= least for group, least in {"experiment": 40, "study": 20, "model": 10}.items())


def test_program_arguments_list_every_group() -> None:
    groups = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert groups - {"experiment", "hydra", "logger"} == set(PROGRAM_ARGUMENTS)


@pytest.mark.parametrize("file", [path for path in FILES if path.parts[0] != "hydra"], ids=lambda path: path.as_posix())
def test_config_file_composes_and_has_valid_options(file: Path) -> None:
    group = [] if file.parent == Path() else [f"{file.parent.as_posix()}={file.stem}"]
    cfg = compose_with_hydra(*group, *REQUIRED.get(file.as_posix(), []))
    validate(cfg)
    choices = cfg.hydra.runtime.choices
    if group:
        assert choices[file.parent.as_posix()] == file.stem
    for part in ("help", "hydra_logging", "job_logging"):
        assert choices[f"hydra/{part}"] == "dlhw"


@pytest.mark.parametrize("model", ["cnn", "cnn_by_hand", "mlp", "mlp_by_hand"])
@pytest.mark.parametrize("dataset", IMAGE_SHAPES)
def test_model_accepts_the_images_of_every_grey_dataset(dataset: str, model: str) -> None:
    cfg = compose(f"dataset={dataset}", f"model={model}")
    assert cfg.dataset == compose(f"dataset={dataset}").dataset
    assert cfg.model == compose(f"model={model}").model
    shape = IMAGE_SHAPES[dataset]
    assert make_model(cfg, shape=shape, outputs=10)(torch.zeros(4, *shape)).shape == (4, 10)


@pytest.mark.slow
def test_wheel_contains_every_config_file_and_template(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    project = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=project,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(only(list(tmp_path.glob("*.whl")))) as wheel:
        names = wheel.namelist()
    templates = {path.relative_to(TEMPLATE).as_posix() for path in TEMPLATE.rglob("*.*") if path.suffix != ".pyc"}
    assert {name for name in names if name.startswith("dlhw/templates/")} == {
        f"dlhw/templates/mine/{name}" for name in templates
    }
    packed = {name for name in names if name.startswith("dlhw/conf/")}
    assert packed == {f"dlhw/conf/{path.as_posix()}" for path in FILES}
