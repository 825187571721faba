"""Maps and filters of the first layer, for a network with known filters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dlhw.errors import UsageError
from dlhw.studies import alexnet_features as study
from dlhw.studies.alexnet_features import correlation, ranks
from dlhw.studies.imagenet import rotated
from support.composing import Ask


class Known(nn.Module):
    """Three filters of 3x3: the mean, a vertical edge in grey, red against green."""

    categories = ("one", "two")
    architecture = "known"

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, stride=2, padding=1, padding_mode=padding_mode)
        edge = torch.tensor([-1.0, 0, 1]).expand(3, 3, 3)
        color = torch.tensor([1.0, -1, 0]).view(3, 1, 1).expand(3, 3, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.stack([torch.full((3, 3, 3), 1 / 27), edge, color]))
            self.first.bias.copy_(torch.tensor([5.0, 0, 0]))
        self.last = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.first(x).mean((2, 3)))
        return logits


@pytest.fixture
def few(tmp_path: Path) -> list[str]:
    """Overrides for a picture of coloured disks at its size."""
    path = tmp_path / "disks.png"
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    pixels = torch.full((48, 48, 3), 60, dtype=torch.uint8)
    for middle, color in ((14, (250, 240, 230)), (34, (200, 30, 10))):
        pixels[(y - middle) ** 2 + (x - 24) ** 2 < 70] = torch.tensor(color, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return ["experiment=alexnet_features", f"study.picture={path}", "study.resize=48", "study.crop=48", "study.shown=2"]


def test_maps_and_filters_of_known_weights_have_known_statistics(ask: Ask, few: list[str]) -> None:
    answer = ask(*few, network=Known())
    assert answer.disagreements == []
    assert (answer.numbers["maps"], answer.numbers["map_height"], answer.numbers["map_width"]) == (3, 24, 24)
    mean, edge, color = answer.tables["filters"]
    assert mean["brightness_gain"] == pytest.approx(1)
    assert mean["follows_brightness"] == pytest.approx(1)
    assert mean["color_share"] == pytest.approx(0, abs=1e-6)
    assert (edge["brightness_gain"], color["brightness_gain"]) == pytest.approx((0, 0), abs=1e-6)
    assert (edge["color_share"], color["color_share"]) == pytest.approx((0, 1), abs=1e-6)
    assert answer.numbers["color_filters"] == 1
    crop, blur, rotation, noise = answer.tables["changes"]
    assert crop["with_moved_maps"] > crop["q50"]
    assert rotation["with_moved_maps"] > rotation["q50"]
    assert blur["deviation_ratio"] < 1
    assert noise["q50"] > 0.5
    assert set(answer.figures) == {"maps", "filters", "changes"}


def test_maps_do_not_change_without_disturbance(ask: Ask, few: list[str]) -> None:
    answer = ask(*few, "study.share=1", "study.blur=0", "study.rotation=0", "study.noise=0", network=Known())
    for row in answer.tables["changes"]:
        assert (row["q25"], row["deviation_ratio"]) == pytest.approx((1, 1), abs=1e-5)


def test_wrong_maps_disagree(ask: Ask, few: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    input_and_maps = study.input_and_maps

    def shifted(network: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, maps = input_and_maps(network, pixels)  # type: ignore[arg-type]
        return x, maps.roll(1, -1)

    monkeypatch.setattr(study, "input_and_maps", shifted)
    assert len(ask(*few, network=Known()).disagreements) == 1


def test_correlation_equals_torch_and_is_zero_for_constants() -> None:
    a = torch.tensor([[1.0, 2, 3, 10], [1, 1, 1, 1]]).double()
    b = torch.tensor([5.0, 6, 7, 8]).double()
    assert correlation(ranks(a[0]), ranks(b)).item() == pytest.approx(1)
    assert correlation(a, b).tolist() == pytest.approx([torch.corrcoef(torch.stack([a[0], b]))[0, 1].item(), 0])


def test_rotation_by_90_degrees_is_exact() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    torch.testing.assert_close(rotated(x, 90, fill=0.0), x.rot90(1, (2, 3)))


@pytest.mark.parametrize(
    ("override", "message"),
    [("study.share=0", "study.share"), ("study.blur=-1", "study.blur"), ("study.shown=7", "study.shown")],
)
def test_invalid_settings_raise_usage_error(ask: Ask, few: list[str], override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(*few, override, network=Known())


def test_layer_with_reflect_padding_raises_usage_error(ask: Ask, few: list[str]) -> None:
    with pytest.raises(UsageError, match="must have groups=1 and numeric zero padding"):
        ask(*few, network=Known(padding_mode="reflect"))
