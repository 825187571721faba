"""Classify files and folders: accuracy, labels, and predictions for disturbed pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies.imagenet import MEAN_COLOR, blurred, cropped, noisy, rotated
from support.composing import Ask

NAMES = ("red", "green", "blue", "a fourth", "a fifth", "a sixth")


class Colors(nn.Module):
    """Predict the brightest channel."""

    categories = NAMES
    architecture = "colors"

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, len(NAMES))
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(len(NAMES), 3))
            self.last.bias.copy_(torch.tensor([0.0, 0, 0, -9, -9, -9]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(x.mean((2, 3)))
        return logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in {"a": (220, 20, 20), "b": (30, 200, 10), "c": (0, 20, 240), "d": (200, 90, 90)}.items():
        Image.new("RGB", (20, 16), color).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 truncated")
    (folder / "note.txt").write_text("not a picture")
    return folder


def few(folder: Path, *more: str) -> list[str]:
    """Return overrides for small pictures and few disturbances."""
    strengths = ["study.noise=[0,30]", "study.blur=[0,1]", "study.rotation=[0,90]", "study.crops=[0.5,1]"]
    sizes = ["study.resize=16", "study.crop=16", "study.draws=2"]
    return ["experiment=alexnet_classify", f"study.picture={folder}", *sizes, *strengths, *more]


def test_labelled_folder_gives_accuracies_and_top5_table(ask: Ask, folder: Path) -> None:
    lines = ["file,imagenet_index,label", "a.png,0,red", "b.png,2,blue", "c.png,2,blue", "d.png,,unknown class"]
    (folder / "labels.csv").write_text("\n".join(lines))
    answer = ask(*few(folder), network=Colors())
    assert answer.disagreements == []
    assert answer.numbers["pictures"] == 4
    assert answer.numbers["top1_accuracy"] == pytest.approx(2 / 3)
    assert answer.numbers["top5_accuracy"] == 1
    first = {row["file"]: (row["class"], row["right"]) for row in answer.tables["top5"] if row["rank"] == 1}
    assert first == {
        "a.png": ("red", True), "b.png": ("green", False), "c.png": ("blue", True), "d.png": ("red", ""),
    }  # fmt: skip
    top1 = answer.tables["accuracy"][0]
    assert (top1["low"], top1["high"]) == pytest.approx((0.2077, 0.9385), abs=1e-4)  # Wilson interval of 2 of 3
    assert any(line.startswith("skipped: ") and "broken.jpg" in line for line in answer.messages)
    assert any("b.png: green" in line and "wrong: the true class is blue" in line for line in answer.messages)
    assert len(answer.tables["robustness"]) == 8
    assert {row["same_answer"] for row in answer.tables["robustness"]} == {1.0}  # each picture has one colour
    assert set(answer.figures) == {"top5", "robustness"}


def test_single_file_without_labels_has_no_accuracy(ask: Ask, folder: Path) -> None:
    answer = ask(*few(folder / "c.png"), network=Colors())
    assert (answer.numbers["pictures"], "top1_accuracy" in answer.numbers) == (1, False)
    assert answer.messages[0].startswith("c.png: 1. blue")
    assert len(answer.messages) == 5


def test_labels_can_be_class_names_in_another_file(ask: Ask, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("file,label\na.png,Red\nelsewhere.png,blue\n")
    answer = ask(*few(folder, f"study.labels={tmp_path / 'mine.csv'}"), network=Colors())
    assert (answer.numbers["top1_accuracy"], answer.tables["accuracy"][0]["pictures"]) == (1, 1)


def test_predictions_that_change_without_disturbance_disagree(ask: Ask, folder: Path) -> None:
    class Unstable(Colors):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x) / self.calls

    assert len(ask(*few(folder), network=Unstable()).disagreements) == 4


def test_disturbances_at_known_strengths() -> None:
    x = 255 * torch.rand(1, 3, 12, 12, generator=generator(0, "test"), dtype=torch.float64)
    assert torch.equal(noisy(x, 0, generator(0, "noise")), x)
    assert noisy(x, 1e9, generator(0, "noise")).unique().tolist() == [0.0, 255.0]
    assert torch.equal(blurred(x, 0), x)
    assert blurred(x, 1).std() < x.std()
    torch.testing.assert_close(blurred(torch.full_like(x, 7), 5), torch.full_like(x, 7))
    torch.testing.assert_close(cropped(x, 1), x)
    middle = torch.zeros_like(x)
    middle[..., 3:9, 3:9] = 1
    torch.testing.assert_close(cropped(middle, 0.5), torch.ones_like(x))
    torch.testing.assert_close(rotated(x, 180, fill=MEAN_COLOR), x.flip(2, 3))
    assert torch.allclose(rotated(x, 45, fill=MEAN_COLOR)[0, :, 0, 0], MEAN_COLOR.flatten())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,label\na.png,red\n", "must have the columns file and imagenet_index"),
        ("", "must have the columns"),
        ("file,label\na.png,rde\n", "line 2: label=rde: not a class.*did you mean red"),
        ("file,imagenet_index\na.png,6\n", "line 2: imagenet_index=6: must be from 0 to 5"),
        ("file,imagenet_index\na.png,-1\n", "line 2: imagenet_index=-1: "),
    ],
)
def test_invalid_labels_raise_usage_error(ask: Ask, folder: Path, content: str, message: str) -> None:
    (folder / "labels.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        ask(*few(folder), network=Colors())


def test_invalid_settings_raise_usage_error(ask: Ask, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"study.labels=.*no.csv: no such file"):
        ask(*few(folder, f"study.labels={tmp_path / 'no.csv'}"), network=Colors())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no readable picture in this folder"):
        ask(*few(tmp_path / "empty"), network=Colors())
    with pytest.raises(UsageError, match=r"study.picture=.*broken.jpg: "):
        ask(*few(folder / "broken.jpg"), network=Colors())
    with pytest.raises(UsageError, match=r"study\.crops"):
        ask(*few(folder, "study.crops=[0]"), network=Colors())
