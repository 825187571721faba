"""Groups of pictures: from names and tables, near duplicates, parts that share no group."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dlhw.data import folders, groups
from dlhw.errors import UsageError
from support.datasets import options
from support.pictures import dataset, folder_of, photo, set_old_times


def pixels(*pictures: Image.Image, side: int = 64) -> torch.Tensor:
    """Return pictures as a batch (N, 3, side, side)."""
    arrays = [np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw labels, groups that may contain several classes, and a seed."""
    count = draw(st.integers(12, 80))
    y = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    group_of = draw(st.lists(st.integers(0, draw(st.integers(4, 60))), min_size=count, max_size=count))
    return np.array(y), np.array(group_of), draw(st.integers(0, 5))


@given(samples(), st.sampled_from([{"train": 0.8, "val": 0.2}, {"train": 0.6, "val": 0.3, "test": 0.1}]))
def test_every_sample_and_every_group_is_in_one_part(
    sample: tuple[np.ndarray, np.ndarray, int], shares: dict[str, float]
) -> None:
    y, group_of, seed = sample
    parts = groups.split(y, group_of, shares, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(y)))
    groups_of_parts = [set(group_of[rows]) for rows in parts.values()]
    assert sum(map(len, groups_of_parts)) == len(set(group_of))
    repeated = groups.split(y, group_of, shares, seed=seed)
    assert all(np.array_equal(rows, repeated[name]) for name, rows in parts.items())


@given(samples(), st.sampled_from([{"train": 0.8, "val": 0.2}, {"train": 0.6, "val": 0.3, "test": 0.1}]))
def test_parts_are_stratified_up_to_one_group(
    sample: tuple[np.ndarray, np.ndarray, int], shares: dict[str, float]
) -> None:
    y, group_of, seed = sample
    group_of = 3 * group_of + y  # each group has one class
    parts = groups.split(y, group_of, shares, seed=seed)
    for label in set(y):
        largest = np.unique(group_of[y == label], return_counts=True)[1].max()
        for name, share in shares.items():
            count = (y[parts[name]] == label).sum()
            assert abs(count - share * (y == label).sum()) <= largest


def test_ungrouped_samples_are_split_exactly_by_class_and_by_the_seed() -> None:
    y = np.repeat([0, 1], [100, 40])
    splits = [groups.split(y, np.arange(140), {"train": 0.7, "val": 0.2, "test": 0.1}, seed=seed) for seed in (0, 1)]
    for parts in splits:
        counts = {name: np.bincount(y[rows]).tolist() for name, rows in parts.items()}
        assert counts == {"train": [70, 28], "val": [20, 8], "test": [10, 4]}
    assert not np.array_equal(splits[0]["val"], splits[1]["val"])


def test_linked_samples_are_in_one_group() -> None:
    links = np.array([[0, 3], [3, 4], [1, 5]])
    assert groups.connected_groups(6, links, np.array([[5, 1]])).tolist() == [0, 1, 2, 0, 0, 1]
    assert groups.connected_groups(3).tolist() == [0, 1, 2]
    assert groups.links_between_equal(["a", None, "b", "a", None, "a"]).tolist() == [[0, 3], [0, 5]]


def test_near_pairs_equal_those_of_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 256, (40, 32)).astype(np.uint8)
    hashes[20:] = hashes[:20]
    for row in hashes[20:]:
        row[draw.integers(0, 32, 3)] ^= np.uint8(1) << draw.integers(0, 8, 3).astype(np.uint8)
    hashes[[5, 25]] = 0  # pictures of one colour
    bits = np.unpackbits(hashes, axis=1).astype(int)
    distance = np.abs(bits[:, None] - bits[None]).sum(-1)
    expected = {
        (i, j, distance[i, j])
        for i in range(40)
        for j in range(i + 1, 40)
        if distance[i, j] <= 2 and bits[i].any() and bits[j].any()
    }
    assert expected
    for block in (7, 4096):
        monkeypatch.setattr(groups, "_BLOCK", block)
        assert set(map(tuple, groups.near_pairs(hashes, 2).tolist())) == expected


def test_copies_are_near_and_different_pictures_are_not(tmp_path: Path) -> None:
    picture = photo(1, 200, 150)
    picture.save(tmp_path / "a.jpg", quality=60)
    brighter = picture.point(lambda value: min(255, 20 + 0.9 * value))
    smaller = picture.resize((90, 68))
    batch = pixels(picture, Image.open(tmp_path / "a.jpg"), brighter, smaller, *(photo(seed) for seed in range(2, 30)))
    pairs = groups.near_pairs(groups.perceptual_hashes(batch), groups.FARTHEST)
    assert {(i, j) for i, j, _ in pairs.tolist()} == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_groups_are_read_from_names_or_a_table(tmp_path: Path) -> None:
    names = ["with/3-with-mask.jpg", "without/3.jpg", "with/x3.jpg", "without/31.jpg"]
    pattern = options("face_mask")["groups"]
    assert groups.labels(names, pattern, known=names) == ["3", "3", None, "31"]
    table = tmp_path / "groups.csv"
    table.write_text("group,file\nanna,without/31.jpg\nanna,with/x3.jpg\n,with/3-with-mask.jpg\n,without/3.jpg\n")
    assert groups.labels(names, str(table), known=names) == [None, None, "anna", "anna"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"groups=\(: invalid regular expression"),
        (r"\d+", "must have a group in parentheses"),
        ("(y)", "matches none of the 2 file names, such as a/1.jpg"),
        ("nowhere.csv", "nowhere.csv: no such file"),
        ("group,file\n1,b/9.jpg", r"unknown files \(1\), such as b/9.jpg; expected .* such as a/1.jpg"),
        ("group,file\n1,a/1.jpg\n2", "line 3 must have as many cells as the header"),
        ("group,file\n1,a/1.jpg\n2,a/1.jpg", "a/1.jpg is in the groups '1' and '2'"),
        ("id,file\n1,a/1.jpg", "must have the columns group,file"),
    ],
)
def test_invalid_groups_are_an_error(tmp_path: Path, pattern: str, message: str) -> None:
    if "\n" in pattern:
        (tmp_path / "groups.csv").write_text(pattern)
        pattern = str(tmp_path / "groups.csv")
    with pytest.raises(UsageError, match=message):
        groups.labels(["a/1.jpg", "b/2.jpg"], pattern, known=["a/1.jpg", "b/2.jpg"])


# Groups in folders of pictures


def face_mask_folder(root: Path) -> Path:
    """Save twenty numbered photos of both classes, and generated copies of some of them."""
    for number in range(20):
        for folder, name in (("with_mask", f"{number}-with-mask.jpg"), ("without_mask", f"{number}.jpg")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            photo(number + (1000 if folder == "with_mask" else 0), 64, 64).save(root / folder / name)
    for number in range(10):
        shutil.copy(root / "with_mask" / "0-with-mask.jpg", root / "with_mask" / f"augmented_image_{number}.jpg")
        photo(5, 64, 64).save(root / "without_mask" / f"augmented_image_{number}.jpg", quality=30 + 4 * number)
    set_old_times(root)
    return root


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_face_mask_photo_are_in_one_part(tmp_path: Path, seed: int) -> None:
    face_mask_folder(tmp_path / "face_mask")
    data = folders.face_mask(**options("face_mask", data_dir=str(tmp_path), resize=32, crop=32, seed=seed))
    number = {name: "".join(filter(str.isdigit, name)) for name in data.names}
    parts = [{number[data.names[row]] for row in part.all_rows()[0]} for part in (data.train, data.val)]
    assert not parts[0] & parts[1]
    assert data.about["counts"] == {
        "train": {"with_mask": 16, "without_mask": 16},
        "val": {"with_mask": 4, "without_mask": 4},
    }
    assert (data.about["excluded"], data.about["groups"], data.about["leaked_percent"]) == (20, 20, 0)
    assert data.about["leaked_percent_by_file"] > 30


def test_copies_are_reported_and_grouped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = face_mask_folder(tmp_path / "faces")
    small = {"resize": 32, "crop": 32}
    by_file = dataset(root, split="files", **small).about
    assert (by_file["identical_groups"], by_file["identical_files"]) == (1, 11)
    assert by_file["near_pairs"] == 55  # among the eleven copies of 5.jpg
    assert by_file["torn_pairs"] == by_file["torn_pairs_by_file"] > 0
    assert any("are copies of training pictures" in record.message for record in caplog.records)
    by_group = dataset(root, **small).about
    assert by_group["groups"] == 50
    assert by_group["torn_pairs_by_file"] == by_file["torn_pairs"]
    grouped = dataset(root, near_duplicates=groups.FARTHEST, **small).about
    assert (grouped["groups"], grouped["torn_pairs"], grouped["leaked_percent"]) == (40, 0, 0)


def test_a_table_of_groups_is_respected(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 12, "dogs": 12})
    table = tmp_path / "groups.csv"
    rows = [f"{number // 3},{name}/{number}.png" for name in ("cats", "dogs") for number in range(12)]
    table.write_text("\n".join(["group,file", *rows]))
    data = dataset(root, groups=str(table), validation_fraction=0.25)
    parts = [{int(data.names[row][5:-4]) // 3 for row in part.all_rows()[0]} for part in (data.train, data.val)]
    assert [len(numbers) for numbers in parts] == [3, 1]
    assert len(dataset(root, groups=str(table), exclude=["1.png"]).names) == 22  # the table may contain excluded files
    assert not parts[0] & parts[1]


def test_a_part_that_lacks_a_class_is_an_error(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "animals", {"cats": 6, "dogs": 6})
    with pytest.raises(UsageError, match=r"validation_fraction=0.2: leaves no cats for val; .* 6 pictures in 1 group,"):
        dataset(root, groups=r"(\.png)")


def test_copies_in_published_parts_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, start in (("train", 0), ("val", 100)):
        folder_of(tmp_path / "animals" / part, {"cats": 5, "dogs": 5}, start=start)
    shutil.copy(tmp_path / "animals" / "train" / "cats" / "1.png", tmp_path / "animals" / "val" / "cats" / "1.png")
    data = dataset(tmp_path / "animals")
    assert (data.about["torn_pairs"], data.about["leaked_percent"]) == (1, 10)
    assert any("are copies of training pictures" in record.message for record in caplog.records)


@pytest.mark.real
def test_real_face_mask_has_66_groups_of_identical_pictures(tmp_path: Path) -> None:
    root = Path(os.environ.get("DLHW_DATA", "nowhere")).expanduser()
    if not (root / "face_mask").is_dir():
        pytest.skip("no folder face_mask in the folder that DLHW_DATA names")
    changes = {"data_dir": str(root), "cache_dir": str(tmp_path), "exclude": [], "split": "files"}
    about = folders.face_mask(**options("face_mask", **changes)).about
    assert (about["identical_groups"], about["identical_files"]) == (66, 163)
    assert 60 < about["leaked_percent"] < 75
