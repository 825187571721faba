"""The experiments: their headers, their rows in the README and two training steps of each."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dlhw import train
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.storage.identity import without_hydra
from dlhw.storage.record import Record
from dlhw.storage.stored import read_summary
from support.composing import compose, compose_with_hydra
from support.config_files import CONF, EXPERIMENTS, option_names

UNTRAINED = {*option_names("study"), "mask_samples", "cifar_samples"}
"""Experiments that train nothing."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_has_question_command_and_its_own_name(name: str) -> None:
    package, question, *rest = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert package == "# @package _global_"
    assert question.startswith("# ")
    assert "?" in question
    assert any(line.startswith(f"#   python -m dlhw.train experiment={name}") for line in rest)
    assert "_target_" not in "\n".join(rest)
    assert compose(f"experiment={name}").name == name


def test_readme_and_sheet_pages_list_every_experiment() -> None:
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


def random_images(
    side: int, *, seed: int, mean: float, std: float, validation_fraction: float, **options: Any
) -> Dataset:
    """Return random images (1, side, side): 32 training (two batches of 16), 8 validation and 8 test samples."""

    def split(count: int) -> Split:
        pixels = torch.Generator().manual_seed(count)
        x = torch.randint(256, (count, 1, side, side), generator=pixels, dtype=torch.uint8)
        return Split(x, torch.arange(count) % 10)

    return assemble("random_images", split(40), split(8), seed=seed, validation_fraction=0.2, mean=mean, std=std,
                    largest=255, classes=tuple("0123456789"))  # fmt: skip


random_mnist = functools.partial(random_images, 28)
random_digits = functools.partial(random_images, 8)


def random_table(*, seed: int, **options: Any) -> Dataset:
    """Return random numbers in Boston's shape: 32 training, 8 validation and 10 test samples."""
    source = torch.Generator().manual_seed(0)
    train_and_val, test = (
        Split(torch.randn(count, 13, generator=source), torch.randn(count, generator=source)) for count in (40, 10)
    )
    return assemble("random_table", train_and_val, test, seed=seed, validation_fraction=0.2, mean=0.0, std=1.0,
                    largest=1, classes=())  # fmt: skip


def random_photos(**options: Any) -> Dataset:
    """Return random colour images of two classes: 32 training and 8 validation samples, no test split."""
    pixels = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 3, 32, 32), generator=pixels, dtype=torch.uint8)
    whole = Split(x, torch.arange(40) % 2)
    data = assemble("random_photos", whole, whole, seed=options["seed"], validation_fraction=0.2,
                    mean=options["mean"], std=options["std"], largest=255, classes=("no", "yes"))  # fmt: skip
    return replace(data, test=None)


SMALL_DATA = {
    "idx": [f"dataset._target_={__name__}.random_mnist"],
    "digits": [f"dataset._target_={__name__}.random_digits"],
    "tabular": [f"dataset._target_={__name__}.random_table"],
    "cifar": [f"dataset._target_={__name__}.random_photos", "report=none"],
    "folders": [f"dataset._target_={__name__}.random_photos", "report=none"],
    "playground": ["dataset.points=64", "report=none"],
    "synthetic": ["dataset.n=40", "dataset.validation_fraction=0.2", "trainer.steps_per_epoch=2"],
}
"""By module of dlhw.data: overrides that replace its datasets by 32 training samples of the same shape."""


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in UNTRAINED])
def test_experiment_trains_two_steps(tmp_path: Path, name: str) -> None:
    original = compose_with_hydra(f"experiment={name}")
    small = compose_with_hydra(
        f"experiment={name}",
        *SMALL_DATA[original.dataset["_target_"].split(".")[-2]],
        *(["model.weights=null"] if "weights" in original.model else []),
        "trainer.epochs=1",
        "trainer.batch_size=16",
        "trainer.device=cpu",
        f"data_dir={tmp_path}",
    )
    cfg = without_hydra(small)
    train.run(cfg, Record(tmp_path))
    summary = read_summary(tmp_path)
    assert summary["status"] == "finished"
    assert summary["experiment"] == name
    assert summary["final"]["step"] == 2
    assert OmegaConf.load(tmp_path / "config.yaml") == OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
