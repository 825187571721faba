"""The page and the animation of a network in the plane; the page is also opened in a browser if there is one."""

from __future__ import annotations

import io
import itertools
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from torch import nn

from dlhw.data.tensors import Dataset
from dlhw.models import dense
from dlhw.models.playground import FEATURES
from dlhw.views import playground as views
from dlhw.views.playground import snapshots
from dlhw.views.playground.networks import Network
from support.playground import BEST, OPTIONS, content_of, make_data, make_model, make_record, report, vary

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


def test_the_page_holds_the_weights(tmp_path: Path) -> None:
    model, data = make_model(), make_data()
    content = content_of(report(tmp_path, model, data))
    assert content["epochs"] == [0, 10, 20, BEST, 30]
    assert content["best"] == BEST
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for epoch, stored in zip(content["epochs"], content["weights"], strict=True):
        if epoch == BEST:
            model.load_state_dict(weights)
        else:
            vary(model, seed=epoch + 1)
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        flat = torch.cat([torch.cat([layer.bias[:, None], layer.weight], 1).flatten() for layer in layers])
        torch.testing.assert_close(torch.tensor(stored).double(), flat.detach(), rtol=1e-6, atol=0)
    assert content["losses"]["test"] == [None, *(pytest.approx(0.7 / e, rel=1e-4) for e in (10, 20, BEST, 30))]


def test_the_page_is_self_contained_and_safe(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script><!--RUN--> & \u2028 <b>"
    answer = report(tmp_path, make_model(), Dataset(**vars(make_data()) | {"name": name}))
    page = answer.files["playground.html"].decode()
    assert content_of(answer)["name"] == name
    assert page.count("<script") == page.count("</script>") == 2
    assert not re.search(r"https?:|//\w+\.|src=|@import|url\(", page)
    title = re.search("<title>(.*)</title>", page)
    assert title
    assert "<" not in title[1]
    assert unescape(title[1]) == f"{name}: training"
    assert len(page) < 100_000


def dump(page: Path, fragment: str, profile: Path) -> dict[str, str]:
    """Open a page in a browser, and return the data attributes of its body."""
    assert BROWSER is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=2000",
    ]
    command = [BROWSER, *options, "--dump-dom", f"{page.as_uri()}{fragment}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    body = re.search("<body([^>]*)>", ended.stdout)
    assert body
    return dict(re.findall(r'data-([\w-]+)="([^"]*)"', body[1]))


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_computes_the_outputs_of_pytorch(tmp_path: Path) -> None:
    names = get_args(dense.ActivationName)
    random = torch.Generator().manual_seed(0)
    sizes = [len(FEATURES), *[4] * (len(names) - 1), 1]
    stored = {}
    for epoch in (0, 120, 500):  # each activation is used once
        weights = tuple(
            torch.randn(units, sources, generator=random, dtype=torch.float64) / sources
            for sources, units in itertools.pairwise(sizes)
        )
        biases = tuple(torch.randn(units, generator=random, dtype=torch.float64) for units in sizes[1:])
        stored[epoch] = Network(tuple(FEATURES), weights, biases, names)
    from dlhw.views.playground import animation

    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch} for epoch in range(1, 501)]
    training = snapshots.Training("plane", (), rows, 120)
    page = tmp_path / "page.html"
    page.write_text(animation.page(stored, training, side=20), encoding="utf-8")
    for fragment, epoch in (("#epoch=0", 0), ("#epoch=460", 500), ("", 120)):  # the nearest one; the best one
        found = dump(page, fragment, tmp_path / "profile")
        assert "error" not in found
        assert found["ready"] == "true"
        assert found["epoch"] == str(epoch)
        point = torch.tensor([[float(part) for part in found["point"].split(",")]])
        assert float(found["output"]) == pytest.approx(float(stored[epoch].units(point)[-1]), abs=1e-5)


@pytest.mark.skipif(BROWSER is None, reason="no browser")
@pytest.mark.parametrize("hidden", [(), (30,)])
def test_a_page_opens_without_errors(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    model, data = make_model(hidden, output="Identity"), make_data("reg_plane")
    record = make_record(tmp_path, model, data)
    if hidden:
        record.rows = []
        path = tmp_path / "probes" / "epoch_0010.csv"
        path.write_text(re.sub("(?<=1,2,0,0,).*", "", path.read_text(), count=1))
    views.playground(model, data, record=record, **OPTIONS).write(record)
    found = dump(tmp_path / "figures" / "playground.html", "#epoch=10", tmp_path / "profile")
    assert "error" not in found
    assert found["ready"] == "true"
    assert math.isnan(float(found["output"])) == bool(hidden)


def test_the_animation_has_a_frame_per_epoch_and_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make_model(), make_data()

    def durations(epochs: Sequence[int]) -> list[int]:
        with Image.open(io.BytesIO(report(tmp_path, model, data, epochs=epochs).files["playground.gif"])) as image:
            times = []
            for i in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(i)
                times.append(image.info["duration"])
            assert image.info["loop"] == 0
            return times

    assert durations((0, 10, 30)) == [400, 400, 400, 2000]
    assert len(durations(range(0, 100, 10))) == 5
    from dlhw.views.playground import animation

    monkeypatch.setattr(animation, "GIF_BYTES", 30_000)
    assert 2 <= len(durations(range(0, 100, 10))) < 5
