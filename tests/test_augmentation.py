"""Augmentation: transforms, randomness, mixup and cutmix, training runs, invalid options."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlhw import train as program
from dlhw.cli import assembly, composition
from dlhw.cli.build import build, validate
from dlhw.data.augmentation import Augmentation
from dlhw.data.batches import Batches, shuffled
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.runtime.devices import Precision
from dlhw.runtime.progress import Progress
from dlhw.storage.record import Record
from dlhw.storage.stored import read_summary
from support.comparing import assert_same_run
from support.composing import compose

GROUP_OPTIONS = sorted(path.stem for path in (composition.conf_dir() / "augmentation").glob("*.yaml"))


def augmentation(**changes: Any) -> Augmentation:
    transforms = build(compose("augmentation=none"), "augmentation")
    assert isinstance(transforms, Augmentation)
    return replace(transforms, **({"workers": 0} | changes))


def pictures(count: int = 12, channels: int = 3, size: int = 16) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randint(1, 256, (count, channels, size, size), generator=draw, dtype=torch.uint8)


def dataset(augmentation: Augmentation | None, channels: int = 3) -> Dataset:
    training = Split(pictures(40, channels), torch.arange(40) % 4)
    test = Split(pictures(8, channels), torch.arange(8) % 4)
    data = assemble("noise", training, test, seed=0, validation_fraction=0.25, mean=0.5, std=0.5, largest=255,
                    classes=tuple("abcd"))  # fmt: skip
    return replace(data, augmentation=augmentation).to("cpu", torch.float64)


def noise(*, data_dir: str, seed: int, mean: float, std: float, validation_fraction: float) -> Dataset:
    """Return the dataset without augmentation; the target of a config."""
    return dataset(None)


NOISE = (f"dataset._target_={__name__}.noise", "model.hidden=[5]", "trainer.device=cpu", "trainer.precision=fp64",
         "trainer.batch_size=16", "trainer.epochs=1")  # fmt: skip


def batches_of(
    data: Dataset, epoch: int = 1, *, size: int = 8, seeds: tuple[int, ...] = (0,)
) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of an epoch."""
    return list(Batches(data, seeds, size=size, steps=-(-len(data.train) // size))(epoch))


def by_picture(data: Dataset, epoch: int, size: int) -> dict[int, Tensor]:
    """Return each augmented picture of an epoch by its row in the pool."""
    rows = shuffled(data.train, [0], epoch)[0].tolist()
    return dict(zip(rows, torch.cat([x[0] for x, _ in batches_of(data, epoch, size=size)]), strict=True))


def test_augmentation_none_is_inactive() -> None:
    assert not augmentation().changes_pictures
    assert not augmentation().mixes


def augmented(x: Tensor, epochs: int = 1, **changes: Any) -> list[Tensor]:
    """Return the picture as it is augmented in each epoch."""
    transforms = augmentation(**changes)
    assert transforms.changes_pictures
    with torch.random.fork_rng():
        return [transforms.augment(x, seed=0, epoch=epoch, row=0) for epoch in range(epochs)]


def test_flips_mirror_the_picture() -> None:
    x = pictures()[0]
    assert torch.equal(augmented(x, flip=1.0)[0], x.flip(2))
    assert torch.equal(augmented(x, vertical_flip=1.0)[0], x.flip(1))
    assert torch.equal(augmented(x, flip=1.0, vertical_flip=1.0)[0], x.flip(1, 2))


def test_a_flip_is_applied_with_its_probability() -> None:
    x = pictures()[0]
    flipped = [torch.equal(result, x.flip(2)) for result in augmented(x, 400, flip=0.25)]
    assert sum(flipped) == pytest.approx(100, abs=30)  # more than 3 standard deviations
    for result, is_flipped in zip(augmented(x, 400, flip=0.25), flipped, strict=True):
        assert is_flipped or torch.equal(result, x)


def test_crop_padding_shifts_the_picture_by_every_offset() -> None:
    x = pictures(size=8)[0]
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    windows = {(i, j): padded[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)}
    offsets = set()
    for result in augmented(x, 200, crop_padding=2):
        (offset,) = [key for key, window in windows.items() if torch.equal(result, window)]
        offsets.add(offset)
    assert offsets == set(windows)


def test_a_random_crop_is_resized_to_the_size_of_the_picture() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32)
    for result in augmented(ramp, 20, crop_scale=(0.1, 0.3)):
        assert result.shape == ramp.shape
        assert result.dtype == torch.uint8
        columns = result.float().mean((0, 1))
        assert (columns.diff() >= 0).all()
        assert columns[-1] - columns[0] < 0.75 * 248  # at most sqrt(0.3 * 4 / 3) of the width
    assert torch.equal(augmented(pictures()[0].mean((1, 2), dtype=torch.float).byte()[:, None, None].expand(3, 8, 8),
                               crop_scale=(0.5, 1))[0].float().var((1, 2)), torch.zeros(3))  # fmt: skip


def test_a_rotation_keeps_the_center_and_stays_within_its_limit() -> None:
    disk = torch.zeros(3, 31, 31, dtype=torch.uint8)
    disk[:, 15, 15:] = 255  # a line from the center to the right
    angles = []
    for result in augmented(disk, 60, rotation_degrees=30.0):
        rows, columns = torch.nonzero(result[0] > 60, as_tuple=True)
        outer = columns > 24
        up, right = (15 - rows[outer]).double().mean(), (columns[outer] - 15).double().mean()
        angles.append(torch.rad2deg(torch.atan2(up, right)))
        assert result[0, 15, 15] > 60
    assert max(map(abs, angles)) <= 33
    assert max(angles) > 15
    assert min(angles) < -15


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_changes_keep_grey_pictures_grey(name: str) -> None:
    grey, colours = torch.full((3, 8, 8), 100, dtype=torch.uint8), pictures()[0]
    greys = augmented(grey, 20, **{name: 0.4})
    assert any(not torch.equal(result, colours) for result in augmented(colours, 20, **{name: 0.4}))
    for result in greys:  # a picture of one grey keeps one grey
        assert len(result.unique()) == 1
    values = {int(result[0, 0, 0]) for result in greys}
    assert (len(values) > 5) == (name == "brightness")
    assert all(59 <= value <= 141 for value in values)


def test_erase_blackens_one_rectangle() -> None:
    x = pictures()[0]  # contains no zero
    for result in augmented(x, 20, erase=1.0):
        erased = (result == 0).all(0)
        rows, columns = erased.any(1), erased.any(0)
        assert erased.any()
        assert torch.equal(erased, rows[:, None] & columns[None])
        assert torch.equal(result[:, ~erased], x[:, ~erased])


def test_strong_augmentation_supports_grey_pictures() -> None:
    cfg = compose("augmentation=strong", "augmentation.workers=0")
    x = pictures(channels=1)[0]
    result = build(cfg, "augmentation").augment(x, seed=0, epoch=1, row=3)
    assert result.shape == x.shape
    assert not torch.equal(result, x)


STRONG: dict[str, Any] = {"crop_padding": 2, "flip": 0.5, "rotation_degrees": 20.0, "brightness": 0.5, "erase": 0.5}


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    data = dataset(augmentation(**STRONG))
    small_batches, large_batch = by_picture(data, 3, size=4), by_picture(data, 3, size=30)
    assert len(small_batches) == 30
    assert all(torch.equal(small_batches[row], large_batch[row]) for row in small_batches)
    raw = data.train.pool_x
    assert sum(torch.equal(small_batches[row], raw[row]) for row in small_batches) < 5


def test_augmentation_depends_on_epoch_seed_and_picture() -> None:
    transforms, x = augmentation(**STRONG), pictures()[0]
    with torch.random.fork_rng():
        expected = transforms.augment(x, seed=0, epoch=1, row=0)
        for key in ({"seed": 1}, {"epoch": 2}, {"row": 1}):
            assert not torch.equal(transforms.augment(x, **({"seed": 0, "epoch": 1, "row": 0} | key)), expected), key


def test_worker_processes_give_the_same_batches() -> None:
    without_workers, with_workers = (dataset(augmentation(workers=count, **STRONG)) for count in (0, 2))
    batches = Batches(with_workers, [0], size=8, steps=4)
    for epoch in (1, 2):  # both epochs use the same workers
        for (x, y), (single_x, single_y) in zip(batches(epoch), batches_of(without_workers, epoch), strict=True):
            assert torch.equal(x, single_x)
            assert torch.equal(y, single_y)


@pytest.mark.slow
def test_workers_that_are_not_forked_give_the_same_pictures() -> None:
    without_workers, with_workers = (dataset(augmentation(workers=count, **STRONG)) for count in (0, 2))
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)  # the default on Windows and macOS
    try:
        spawned = list(Batches(with_workers, [0], size=8, steps=4)(1))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert len(spawned) == 4
    for (x, y), (single_x, single_y) in zip(spawned, batches_of(without_workers, 1), strict=True):
        assert torch.equal(x, single_x)
        assert torch.equal(y, single_y)


@pytest.mark.parametrize(("device", "cores", "expected"), [("cuda", 64, 8), ("cuda", 3, 3), ("cpu", 64, 0)])
def test_default_number_of_workers_is_at_most_that_of_the_usable_cores(
    device: str, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlhw.data.augmentation.usable_cores", lambda: cores)
    assert augmentation(workers=None).processes(torch.device(device)) == expected


def test_variants_with_different_seeds_get_the_batches_of_single_runs() -> None:
    data = dataset(augmentation(**STRONG, mixup=0.5))
    together = batches_of(data, 2, seeds=(0, 5))
    for k, seed in enumerate((0, 5)):
        for (x, y), (single_x, single_y) in zip(together, batches_of(data, 2, seeds=(seed,)), strict=True):
            assert torch.equal(x[k], single_x[0])
            assert torch.equal(y[k], single_y[0])


@pytest.mark.parametrize("changes", [STRONG, {"mixup": 0.3}, {"cutmix": 1.0}], ids=["strong", "mixup", "cutmix"])
def test_augmentation_neither_uses_nor_changes_global_random_states(changes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = batches_of(dataset(augmentation(**changes)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(2)
    random.seed(2)
    for (x, y), (again_x, again_y) in zip(first, batches_of(dataset(augmentation(**changes))), strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)


def test_only_training_pictures_are_augmented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows: list[int] = []
    augment = Augmentation.augment

    def recording_augment(self: Augmentation, x: Tensor, *, seed: int, epoch: int, row: int) -> Tensor:
        rows.append(row)
        return augment(self, x, seed=seed, epoch=epoch, row=row)

    monkeypatch.setattr(Augmentation, "augment", recording_augment)
    program.run(compose(*NOISE, "augmentation=strong", "augmentation.workers=0", "trainer.train_metrics=evaluated"),
                Record(tmp_path))  # fmt: skip
    train = dataset(None).train.rows
    assert train is not None
    assert sorted(rows) == sorted(train.tolist())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_in_proportion_to_the_pictures(kind: str) -> None:
    transforms = augmentation(**{kind: 1.0})
    shades = torch.tensor([0.0, 1.0, 2.0, 3.0])
    x, y = transforms.mix(
        shades.view(4, 1, 1, 1).expand(4, 1, 16, 16).double(), shades.long(), classes=4, seed=0, epoch=1, step=0
    )
    torch.testing.assert_close(y.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(x.mean((1, 2, 3)), y @ shades.double())
    assert y.dtype == torch.float64
    assert (y > 0).sum() == 8  # two classes each
    values = [len(picture.unique()) for picture in x]
    assert values == ([1] * 4 if kind == "mixup" else [2] * 4)
    again = transforms.mix(x, shades.long(), classes=4, seed=0, epoch=1, step=0)[1]
    other = transforms.mix(x, shades.long(), classes=4, seed=0, epoch=1, step=1)[1]
    assert torch.equal(again, y)
    assert not torch.equal(other, y)


def test_mixup_and_cutmix_alternate_at_random() -> None:
    transforms, x = augmentation(mixup=1.0, cutmix=1.0), pictures(4).double()
    x[:] = torch.arange(4.0).view(4, 1, 1, 1)
    batches = [transforms.mix(x, torch.arange(4), classes=4, seed=0, epoch=1, step=step)[0] for step in range(20)]
    assert {len(batch[0].unique()) for batch in batches} == {1, 2}


@pytest.mark.parametrize("option", GROUP_OPTIONS)
def test_a_run_with_each_option_finishes(option: str, tmp_path: Path) -> None:
    cfg = compose(*NOISE, f"augmentation={option}", "augmentation.workers=0")
    validate(cfg)
    program.run(cfg, Record(tmp_path))
    summary = read_summary(tmp_path)
    assert (summary["status"], summary["final"]["step"]) == ("finished", 2)


def test_a_run_on_digits_with_shift_and_cutmix_finishes(tmp_path: Path) -> None:
    program.run(
        compose("augmentation=shift", "augmentation.cutmix=1.0", "augmentation.workers=0", "trainer.epochs=1",
                "trainer.steps_per_epoch=2", "trainer.device=cpu", "trainer.batch_size=32"),
        Record(tmp_path),
    )  # fmt: skip
    assert read_summary(tmp_path)["status"] == "finished"


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*NOISE, "augmentation=strong", "augmentation.mixup=0.2", "augmentation.workers=0", "trainer.epochs=4")
    for name in ("uninterrupted", "interrupted"):
        (tmp_path / name).mkdir()
    program.run(compose(*overrides), Record(tmp_path / "uninterrupted"))
    steps: Iterator[int] = iter(range(100))

    def interrupt(self: Progress) -> None:
        if next(steps) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.run(compose(*overrides, "trainer.checkpoint_seconds=0"), Record(tmp_path / "interrupted"))
    program.run(compose(f"resume={tmp_path / 'interrupted'}"), Record(tmp_path / "interrupted"))
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "interrupted")


INVALID = {
    "augmentation=flip dataset=clusters": "augmentation: needs pictures with classes; dataset=clusters has none",
    "augmentation=flip dataset=diabetes loss=mse trainer.monitor=val_mse": (
        "augmentation: needs pictures with classes; dataset=diabetes has none"
    ),
    "augmentation.mixup=0.2 loss=multi_margin": ("loss=multi_margin: does not support augmentation.mixup and cutmix"),
    "augmentation.cutmix=1 loss=cross_entropy_by_hand": (
        "loss=cross_entropy_by_hand: does not support augmentation.mixup and cutmix"
    ),
    "augmentation.flip=1.5": "augmentation.flip=1.5: must be less than or equal to 1",
    "augmentation.hue=0.6": "augmentation.hue=0.6: must be less than or equal to 0.5",
    "augmentation.brightness=-1": "augmentation.brightness=-1: must be greater than or equal to 0",
    "augmentation.rotation_degrees=181": "augmentation.rotation_degrees=181: must be less than or equal to 180",
    "augmentation.crop_scale=[0.9,0.1]": "augmentation.crop_scale=[0.9, 0.1]: must be [smallest, largest]",
    "augmentation.crop_scale=[0.9]": "augmentation.crop_scale=[0.9]: too few values",
    "augmentation.crop_scale=[0,1]": "augmentation.crop_scale=[0, 1]: must be greater than 0",
    "augmentation.workers=-1": "augmentation.workers=-1: must be greater than or equal to 0",
    "augmentation.mixup=nan": "augmentation.mixup=nan: must be finite (not nan or inf)",
}


@pytest.mark.parametrize(("overrides", "message"), INVALID.items(), ids=INVALID)
def test_invalid_options_are_an_error(overrides: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        assembly.assemble(compose("trainer.device=cpu", *overrides.split()))
    assert str(raised.value) == message


def test_colour_changes_alone_are_an_error_for_grey_pictures() -> None:
    with pytest.raises(UsageError, match=r"augmentation\.hue: need colour pictures; dataset=digits has none"):
        assembly.load_data(
            validate(compose("dataset=digits", "augmentation.hue=0.1")), Precision("fp32", torch.device("cpu"))
        )
