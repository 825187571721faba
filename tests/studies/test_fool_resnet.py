"""Noise that changes the prediction of a network: for a linear network, its smallest size is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.studies.fool_resnet import random_noise
from dlhw.studies.imagenet import MEAN, STD, smallest_size
from support.composing import Ask

NAMES = ("dark", "bright", "third", "fourth", "fifth")
SIDE = 8


class Brightness(nn.Module):
    """Logits: 0 for dark, a weighted sum of the pixels (0 to 255) for bright, very negative for the others."""

    categories = NAMES
    architecture = "brightness"

    def __init__(self, threshold: float) -> None:
        super().__init__()
        weights = torch.linspace(-1, 2, 3 * SIDE * SIDE)
        std = 255 * torch.tensor(STD).repeat_interleave(SIDE * SIDE)
        mean = 255 * torch.tensor(MEAN).repeat_interleave(SIDE * SIDE)
        self.layer = nn.Linear(len(weights), len(NAMES))
        self.of_pixels = weights.double()
        with torch.no_grad():
            self.layer.weight.zero_()[1] = weights * std
            self.layer.bias.copy_(torch.tensor([0.0, float(weights @ mean) - threshold, -1e6, -1e6, -1e6]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits


class Reversed(torch.autograd.Function):
    """The identity with a wrong derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


class WrongGradient(Brightness):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(Reversed.apply(x))


@pytest.fixture
def grey(tmp_path: Path) -> list[str]:
    path = tmp_path / "grey.png"
    Image.new("RGB", (SIDE, SIDE), (100, 100, 100)).save(path)
    return [f"study.picture={path}", f"study.resize={SIDE}", f"study.crop={SIDE}", "study.draws=4"]


def margin(pixels: float, network: Brightness) -> float:
    """Return the weighted sum for a picture of one grey value."""
    return pixels * float(network.of_pixels.sum())


def test_smallest_size_along_the_gradient_sign_is_the_margin_over_the_slope(ask: Ask, grey: list[str]) -> None:
    # The margin of bright is 3. A step of size h along the signs reduces it by h |w|_1.
    probe = Brightness(0)
    network = Brightness(margin(100, probe) - 3)
    answer = ask("experiment=fool_resnet", *grey, "study.label=bright", "study.target=dark", network=network)
    assert answer.disagreements == []
    expected = 3 / float(probe.of_pixels.abs().sum())
    assert answer.numbers["smallest_fgsm"] == pytest.approx(expected, rel=0.015)
    assert answer.numbers["smallest_targeted"] == pytest.approx(expected, rel=0.015)
    assert answer.numbers["smallest_fgsm_8_bit"] == math.ceil(expected)
    assert answer.numbers["probability"] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-3)
    # Random signs change it by about h |w|_2.
    assert answer.numbers["smallest_random_half"] > 3 * expected
    assert set(answer.figures) == {"fool_resnet", "curves"}
    assert {row["noise"] for row in answer.tables["noise"]} == {
        "along the gradient's sign",
        "random, gaussian",
        "targeted",
    }


def test_network_that_no_size_fools_is_reported_and_agrees(ask: Ask, grey: list[str]) -> None:
    network = Brightness(margin(100, Brightness(0)) - 1e3)
    answer = ask("experiment=fool_resnet", *grey, "study.sizes=[0.1,0.2]", "study.noise=signs", network=network)
    assert answer.disagreements == []
    assert math.isnan(float(answer.numbers["smallest_fgsm"]))
    assert any("fgsm: does not succeed up to size 0.2 of 255" in line for line in answer.messages)


def test_wrong_prediction_and_wrong_gradient_disagree(ask: Ask, grey: list[str]) -> None:
    network = Brightness(margin(100, Brightness(0)) - 3)
    answer = ask("experiment=fool_resnet", *grey, "study.label=dark", network=network)
    assert [check.what for check in answer.disagreements] == ["predicted class"]

    answer = ask("experiment=fool_resnet", *grey, network=WrongGradient(margin(100, Brightness(0)) - 3))
    assert any("slope of the loss" in check.what for check in answer.disagreements)


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "signs"])
def test_random_noise_has_root_mean_square_1_and_is_reproducible(kind: Any) -> None:
    values = random_noise(torch.Size((1, 3, 60, 60)), generator(0, "test"), kind)
    assert values.square().mean().sqrt().item() == pytest.approx(1, abs=0.02)
    assert abs(values.mean().item()) < 0.03
    assert torch.equal(values, random_noise(values.shape, generator(0, "test"), kind))


def test_smallest_size_is_found_by_bisection() -> None:
    assert smallest_size(lambda x: x >= 3.3, [1, 2, 4, 8], within=0.001) == pytest.approx(3.3, rel=0.002)
    assert smallest_size(lambda x: x >= 0.2, [1], within=0.01) == pytest.approx(0.2, rel=0.02)
    assert math.isnan(smallest_size(lambda x: False, [1, 2], within=0.1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.picture=no.jpg", "study.picture=no.jpg: no such file.*china.jpg"),
        ("study.picture=.", "is a folder"),
        ("study.label=brihgt", "study.label=brihgt: not a class.*did you mean bright"),
        ("study.label=5", "from 0 to 4"),
        ("study.target=cat", "study.target=cat: not a class"),
        ("study.crop=7", "study.crop=7: brightness cannot process pictures of this size"),
        ("study.crop=9", "study.crop=9: must not be larger than study.resize=8"),
        ("study.sizes=[1]", "study.sizes"),
        ("study.sizes=[0,1]", "study.sizes"),
        ("study.noise=salt", "study.noise"),
    ],
)
def test_invalid_settings_raise_usage_error(ask: Ask, grey: list[str], override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask("experiment=fool_resnet", *grey, override, network=Brightness(0))


def test_unreadable_picture_raises_usage_error_with_its_name(ask: Ask, grey: list[str], tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not a picture")
    with pytest.raises(UsageError, match=r"study.picture=.*note.jpg: "):
        ask("experiment=fool_resnet", *grey, f"study.picture={tmp_path / 'note.jpg'}", network=Brightness(0))
