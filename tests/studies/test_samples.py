"""Inspect datasets: counts, channel statistics, figures, and copies in more than one part."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dlhw.cli.composition import conf_dir
from dlhw.data.augmentation import Augmentation
from dlhw.data.digits import digits
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.storage.answer import Answer
from dlhw.studies.samples import channel_table, copies, draw_rows, samples
from support.composing import compose_with_hydra
from support.pictures import dataset, folder_of, photo


def inspect(data: Dataset, **changed: Any) -> Answer:
    config = yaml.safe_load((conf_dir() / "study" / "samples.yaml").read_text())
    del config["_target_"]
    return samples(data=data, seed=0, **{**config, **changed})


@pytest.fixture
def animals(tmp_path: Path) -> Dataset:
    """Photos in two classes. A training photo of each class has a copy in validation: one identical, one compressed."""
    for part, start in (("train", 0), ("val", 100)):
        folder_of(tmp_path / "animals" / part, {"cats": 6, "dogs": 6}, start=start)
    root = tmp_path / "animals"
    shutil.copy(root / "train" / "cats" / "1.png", root / "val" / "cats" / "1.png")
    photo(1002).save(root / "val" / "dogs" / "2.jpg", quality=50)
    return dataset(root)


def test_folder_has_known_counts_sizes_and_copies(animals: Dataset) -> None:
    answer = inspect(animals)
    assert answer.disagreements == []
    assert answer.tables["counts"] == [{"class": "cats", "train": 6, "val": 6}, {"class": "dogs", "train": 6, "val": 7}]
    assert [row["size"] for row in answer.tables["sizes"]] == ["smallest", "median", "largest"]
    assert {(row["width"], row["height"]) for row in answer.tables["sizes"]} == {(40, 30)}
    assert (answer.numbers["near_pairs_across"], answer.numbers["identical_pairs_across"]) == (2, 1)
    assert [(row["first"], row["second"], row["identical"]) for row in answer.tables["copies"]] == [
        ("train/cats/1.png", "val/cats/1.png", True),
        ("train/dogs/2.png", "val/dogs/2.jpg", False),
    ]
    assert len(answer.figures["samples"].axes) == 2 * (3 + 3)
    assert len(answer.figures["copies"].axes) == 4


def test_augmented_pictures_are_drawn_and_the_random_state_is_preserved(animals: Dataset) -> None:
    options = yaml.safe_load((conf_dir() / "augmentation" / "none.yaml").read_text())
    del options["_target_"]
    state = torch.default_generator.get_state()
    answer = inspect(replace(animals, augmentation=Augmentation(**{**options, "flip": 0.5, "erase": 1.0})), augmented=2)
    assert torch.equal(state, torch.default_generator.get_state())
    assert len(answer.figures["samples"].axes) == 2 * (3 + 3 + 2)
    assert len(inspect(replace(animals, augmentation=Augmentation(**options))).figures["samples"].axes) == 2 * (3 + 3)


def test_channel_table_equals_mean_and_std_of_pixels_and_inputs(animals: Dataset) -> None:
    rows, largest = channel_table(animals)
    x = animals.train.x.double()
    assert largest == int(x.max())
    inputs = animals.normalize(animals.train.x)
    for channel, row in enumerate(rows):
        assert row["mean"] == pytest.approx(float(x[:, channel].mean()) / largest)
        assert row["std"] == pytest.approx(float(x[:, channel].std(correction=0)) / largest)
        assert row["input_mean"] == pytest.approx(float(inputs[:, channel].mean()))
        assert row["input_std"] == pytest.approx(float(inputs[:, channel].std(correction=0)))


def test_grey_digits_without_files_have_known_statistics() -> None:
    config = yaml.safe_load((conf_dir() / "dataset" / "digits.yaml").read_text())
    del config["_target_"]
    answer = inspect(digits(data_dir="", seed=0, **config), per_class=1, distance=0)
    assert answer.disagreements == []
    assert [row["channel"] for row in answer.tables["channels"]] == ["grey"]
    assert answer.tables["channels"][0]["mean"] == pytest.approx(0.3054, abs=0.005)
    assert sum(row["train"] + row["val"] for row in answer.tables["counts"]) == 1415
    assert len(answer.figures["samples"].axes) == 20


def colours(size: int | None) -> Dataset:
    """Return 80 random pictures in eleven classes. The test part contains those of the other two parts, too."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (80, 3, 16, 16), dtype=torch.uint8, generator=draw)
    y = torch.arange(80) % 11
    split = Split(x, y)
    return assemble(
        "colours",
        split,
        split,
        seed=0,
        validation_fraction=0.5,
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        largest=255,
        classes=tuple(f"a class with a long name {label}" for label in range(11)),
        size=size,
    )


@pytest.mark.parametrize("size", [None, 40])
def test_samples_in_two_parts_disagree(size: int | None) -> None:
    answer = inspect(colours(size), per_class=6)
    assert [check.what for check in answer.disagreements] == ["samples in more than one part"]
    assert answer.disagreements[0].computed == 80
    assert answer.numbers["identical_pairs_across"] == 80
    assert len(answer.figures["samples"].axes) == 10 * 2 * 5  # no class has six training pictures
    assert len(answer.figures["copies"].axes) == 16


def test_drawn_rows_are_training_samples_of_their_class() -> None:
    data = colours(None)
    for label, rows in enumerate(draw_rows(data, 3, seed=1)):
        assert set(data.train.pool_y[rows].tolist()) <= {label}
        assert set(rows.tolist()) <= set(data.train.all_rows()[0].tolist())


def test_number_of_compared_pictures_is_limited() -> None:
    answer = copies(colours(None), compared=10, distance=0, seed=0)
    assert answer.compared == 30
    assert answer.pairs < 30


def test_data_without_classes_raise_usage_error() -> None:
    data = colours(None)
    with pytest.raises(UsageError, match="dataset=colours has no pictures in classes"):
        inspect(replace(data, classes=()))


@pytest.mark.parametrize("name", ["mask_samples", "cifar_samples"])
def test_experiments_run_this_study(name: str) -> None:
    assert compose_with_hydra(f"experiment={name}").study["_target_"] == "dlhw.studies.samples.samples"
