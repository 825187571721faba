"""A dataset as tensors: splits, normalization, fingerprint, views and devices."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlhw.data import tensors
from dlhw.data.tensors import Dataset, Split, assemble, split_off
from dlhw.errors import UsageError

# Splits


def numbered(count: int) -> Split:
    """Return samples whose values are their indices."""
    return Split(torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.arange(count))


@given(st.integers(1, 250), st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 2**40))
def test_split_off_is_disjoint_complete_and_determined_by_the_seed(count: int, fraction: float, seed: int) -> None:
    split, size = numbered(count), round(fraction * count)
    if size in {0, count}:
        with pytest.raises(UsageError, match=r"leaves none of the .* samples"):
            split_off(split, fraction, seed=seed)
        return
    rest, taken = split_off(split, fraction, seed=seed)
    assert (len(rest), len(taken)) == (count - size, size)
    assert sorted(rest.y.tolist() + taken.y.tolist()) == list(range(count))
    for part in (rest, taken):
        assert torch.equal(part.x.flatten().long(), part.y)
    before = torch.get_rng_state()
    again = split_off(split, fraction, seed=seed)
    assert torch.equal(again[0].y, rest.y)
    assert torch.equal(again[1].y, taken.y)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_split() -> None:
    taken = [tuple(split_off(numbered(100), 0.2, seed=seed)[1].y.tolist()) for seed in range(20)]
    assert len(set(taken)) == 20
    assert {len(numbers) for numbers in taken} == {20}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 1.5, math.nan])
def test_a_fraction_outside_0_to_1_is_an_error(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"dataset\.validation_fraction=.*greater than 0 and less than 1"):
        split_off(numbered(10), fraction, seed=0)


# Normalization and fingerprint


def random_pixels(channels: int = 1) -> Dataset:
    """Return random pictures (channels, 4, 3): sixteen for training, four for validation, five for testing."""
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20, channels, 4, 3), dtype=torch.uint8, generator=random)
    return assemble(
        "small",
        Split(x, torch.arange(20)),
        Split(x[:5].flip(0), torch.arange(5)),
        seed=3,
        validation_fraction=0.2,
        mean=0.1307,
        std=0.3081,
        largest=255,
        classes=tuple("0123456789"),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_computes_pixel_over_largest_minus_mean_over_std(channels: int) -> None:
    data = random_pixels(channels)
    assert data.shape == (channels, 4, 3)
    expected = (data.train.x.double() / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(data.normalize(data.train.x), expected, rtol=0, atol=1e-12)
    single = data.to("cpu", torch.float32)
    torch.testing.assert_close(single.normalize(data.train.x), expected.float(), rtol=0, atol=1e-6)
    assert single.train.x.dtype == torch.uint8
    before = data.train.x.clone()
    single.normalize(data.train.x)
    assert torch.equal(data.train.x, before)


def test_sha256_is_computed_from_the_content_in_its_original_order() -> None:
    data = random_pixels()
    content = hashlib.sha256()
    for part in (data.train, data.val):
        assert not torch.equal(part.y, part.y.sort().values)  # the split shuffles, which must not change the hash
    y = torch.cat([data.train.y, data.val.y])
    x = torch.cat([data.train.x, data.val.x])[y.argsort()]
    for tensor in (x, torch.arange(20), data.test.x, data.test.y):
        content.update(tensor.numpy().tobytes())
    assert data.sha256 == content.hexdigest()


def colours(**changed: Any) -> Dataset:
    """Return random pictures (3, 6, 6) of two classes: ten for training, two for validation, four for testing."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randint(256, (16, 3, 6, 6), generator=draw, dtype=torch.uint8)
    y = torch.arange(16) % 2
    options: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 1.0], "largest": 255, "classes": ("a", "b")}
    parts = Split(x[:12], y[:12]), Split(x[12:], y[12:])
    return assemble("colours", *parts, seed=0, validation_fraction=0.2, **(options | changed))


def test_each_channel_is_normalized_by_its_own_mean_and_std() -> None:
    data = colours()
    x = data.val.x
    expected = torch.stack(
        [(x[:, c].double() / 255 - mean) / std for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 1.0)])],
        1,
    )
    torch.testing.assert_close(data.normalize(x), expected)
    assert data.normalize.shift.shape == data.normalize.scale.shape == (3, 1, 1)
    torch.testing.assert_close(colours(mean=0.5, std=0.5).normalize(x), x.double() / 127.5 - 1)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_mean_and_std_must_match_the_number_of_channels(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        colours(**{name: [0.1, 0.2]})
    assert str(raised.value) == f"dataset.{name}=[0.1, 0.2]: must be one number, or one for each of the 3 channels"


def test_size_resizes_the_inputs_and_not_the_pool() -> None:
    data = colours(size=10)
    assert data.shape == (3, 10, 10)
    assert data.train.pool_x.shape[1:] == (3, 6, 6)
    x = data.val.x
    resized = torch.nn.functional.interpolate(x.double(), (10, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(data.normalize(x), resized * data.normalize.scale + data.normalize.shift)
    torch.testing.assert_close(data.normalize.inverse(data.normalize(x)), resized)
    assert x.dtype == torch.uint8
    assert torch.equal(colours(size=6).normalize(x), colours().normalize(x))


# Parts and views


def test_a_dataset_without_a_test_part_has_train_and_val_only() -> None:
    data = replace(colours(), test=None)
    assert list(data.parts) == list(data.to("cpu", torch.float32).parts) == ["train", "val"]
    assert "test" not in data.description
    assert list(data.for_variant(0).parts) == ["train", "val"]
    assert list(colours().description)[:5] == ["name", "sha256", "train", "val", "test"]


def test_with_parts_replaces_only_the_named_fields() -> None:
    data = colours()
    other = data.with_parts({"val": data.train}, name="other")
    assert other.val is data.train
    assert other.train is data.train
    assert other.test is data.test
    assert (other.name, other.classes, other.sha256) == ("other", data.classes, data.sha256)
    assert data.name == "colours"


def test_epochs_use_the_views_in_turn() -> None:
    data = colours()
    views = tuple(Split(data.train.x + number, data.train.y) for number in range(3))
    with_views = data.with_parts({}, views=views)
    assert [views.index(with_views.view(epoch)) for epoch in (1, 2, 3, 4, 8)] == [0, 1, 2, 0, 1]
    assert data.view(5) is data.train


# Devices


def test_a_pool_too_large_for_the_device_is_not_moved_but_its_labels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = colours().to("meta", torch.float32)
    assert moved.train.pool_x.is_meta
    assert moved.train.pool_x is moved.val.pool_x
    monkeypatch.setattr(tensors, "_is_too_large", lambda pool, device: True)
    kept = colours().to("meta", torch.float32)
    assert not kept.train.pool_x.is_meta
    assert kept.train.pool_y.is_meta
    assert kept.device.type == "meta"
    assert not kept.train.rows_at(torch.zeros(1, 3, dtype=torch.long, device="meta")).is_cpu


def test_gather_moves_rows_to_the_pool_and_samples_to_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    split = Split(torch.arange(12).view(6, 2), torch.arange(6), torch.tensor([4, 1, 5]))
    original_to = torch.Tensor.to

    def recording_to(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        devices.extend(argument for argument in arguments if isinstance(argument, torch.device))
        return original_to(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", recording_to)
    x, y = split.gather(torch.tensor([[4, 5], [1, 1]]))
    assert x.tolist() == [[[8, 9], [10, 11]], [[2, 3], [2, 3]]]
    assert y.tolist() == [[4, 5], [1, 1]]
    assert devices == [split.pool_x.device, split.pool_y.device]
