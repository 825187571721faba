"""The training of a network in the plane as a page with a slider, and as an animation for slides."""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from dlhw.views.playground import panels
from dlhw.views.playground.figures import MOST_UNITS
from dlhw.views.playground.networks import FEATURE_LABELS, HALF_SIDE, Network
from dlhw.views.playground.snapshots import LOSSES, Training, evenly
from dlhw.views.plots import COLORS, TEXT_POINTS, new_figure

CURVE_EPOCHS = 1000
"""Epochs of the loss curves in the page."""
GIF_DPI = 105
GIF_BYTES = 1_400_000
"""Of a larger animation, frames are left out."""
RAMP = 32
"""Colours of the surface in the animation."""
SECONDS = 7.0
"""Duration of the animation, without the pause at the end."""
PAUSE_MS = 2000


def page(networks: Mapping[int, Network], training: Training, *, side: int) -> str:
    """Return a page that shows the networks by epoch. It needs no other file, and computes the maps itself.

    The address may end with ``#epoch=N``, the epoch to start with. For tests, the attribute ``data-output`` of the body
    is the output of the network at ``data-point``, ``data-epoch`` the epoch, and ``data-error`` an error.
    """
    template = resources.files("dlhw.views.playground").joinpath("page.html").read_text(encoding="utf-8")
    content = {"TITLE": html.escape(f"{training.name}: training"), "RUN": script_safe(run(networks, training, side))}
    return re.sub("<!--(TITLE|RUN)-->", lambda match: content[match[1]], template)


def script_safe(content: Any) -> str:
    """Return JSON that may stand inside a ``script`` element, because it has no ``<``."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def run(networks: Mapping[int, Network], training: Training, side: int) -> dict[str, Any]:
    """Return the content of the page. Numbers that are not finite are None."""
    epochs = sorted(networks)
    network = networks[epochs[-1]]
    rows = [training.rows[i] for i in evenly(len(training.rows), CURVE_EPOCHS)]
    losses = {epoch: training.losses(epoch) for epoch in epochs}
    return {
        "name": training.name,
        "description": network.description,
        "halfSide": HALF_SIDE,
        "side": side,
        "features": network.features,
        "featureLabels": [FEATURE_LABELS[name] for name in network.features],
        "hidden": network.hidden,
        "activations": network.activations,
        "mostUnits": MOST_UNITS,
        "best": training.best_epoch,
        "epochs": epochs,
        "losses": {part: [_digits(losses[epoch].get(part, math.nan), 5) for epoch in epochs] for part in LOSSES},
        "weights": [flat(networks[epoch]) for epoch in epochs],
        "largestWeight": _digits(max(networks[epoch].largest_weight for epoch in epochs), 3),
        "curves": {
            "epochs": [row["epoch"] for row in rows],
            **{part: [_digits(row.get(column, math.nan), 4) for row in rows] for part, column in LOSSES.items()},
        },
        "colors": {part: COLORS[part] for part in LOSSES},
        "points": [
            {
                "part": part.part,
                "label": part.label,
                "edge": panels.edge_color(part),
                "values": [
                    [_digits(value, 4) for value in (*point, target)]
                    for point, target in zip(part.inputs.tolist(), part.targets.tolist(), strict=True)
                ],
            }
            for part in training.points
        ],
    }


def flat(network: Network) -> list[float | None]:
    """Return all weights with 7 digits: layer by layer, unit by unit, the bias first."""
    return [
        _digits(value, 7)
        for weight, bias in zip(network.weights, network.biases, strict=True)
        for offset, unit in zip(bias.tolist(), weight.tolist(), strict=True)
        for value in (offset, *unit)
    ]


def _digits(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def gif(networks: Mapping[int, Network], training: Training, *, most: int, side: int) -> bytes:
    """Return an animation of the output with the training points, beside the losses with the epoch marked.

    It has at most ``most`` frames, and fewer if the file would be too large.
    Only what changes is drawn again in each frame, because drawing a whole figure takes ten times as long.
    """
    epochs = sorted(networks)
    chosen = [epochs[i] for i in evenly(len(epochs), most)]
    figure, (plane, curves) = new_figure(2, title=training.name, panel_inches=3.35)
    figure.set_dpi(GIF_DPI)
    surface = panels.draw_surface(plane, torch.zeros(side, side), animated=True)
    plane.set(xticks=[-6, -3, 0, 3, 6], yticks=[-6, -3, 0, 3, 6])
    plane.spines[["left", "bottom"]].set_visible(False)
    (points,) = panels.draw_points(plane, training.points[:1], area=14)
    points.set_animated(True)
    surface.set_interpolation("nearest")  # a third smaller file
    panels.draw_losses(curves, training)
    curves.legend(fontsize=TEXT_POINTS - 1, framealpha=0.85, edgecolor="none")
    headings = [axes.set_title(" ", fontsize=TEXT_POINTS + 1, animated=True) for axes in (plane, curves)]
    headings[0].set_fontweight("bold")
    line = curves.axvline(0, color=COLORS["reference"], linewidth=1.0, animated=True)
    markers = {part: curves.plot([], [], "o", color=COLORS[part], markersize=5, animated=True)[0] for part in LOSSES}
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    background = canvas.copy_from_bbox(figure.bbox)
    frames, palette = [], _palette()
    for epoch in chosen:
        canvas.restore_region(background)
        surface.set_data(networks[epoch].surface(side).clamp(-1, 1).numpy())
        headings[0].set_text(f"epoch {epoch:,}")
        headings[1].set_text(panels.losses_text(training, epoch, "train", "test"))
        line.set_xdata([epoch, epoch])
        losses = training.losses(epoch)
        for part, marker in markers.items():
            marker.set_data([epoch], [losses.get(part, math.nan)])
        for axes, artists in (
            (plane, [surface, points, headings[0]]),
            (curves, [line, *markers.values(), headings[1]]),
        ):
            for artist in artists:
                axes.draw_artist(artist)
        frame = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    content = _encoded(frames)
    while len(content) > GIF_BYTES and len(frames) > 2:
        fewer = min(len(frames) - 1, int(len(frames) * GIF_BYTES / len(content)))
        frames = [frames[i] for i in evenly(len(frames), fewer)]
        content = _encoded(frames)
    return content


def _palette() -> Image.Image:
    """Return the colours of an animation: surfaces, points, curves, their blends with white, and grey."""
    ramp = panels.COLORMAP(np.linspace(0, 1, RAMP))[:, :3]
    surfaces = 1 - panels.OPACITY * (1 - ramp)
    lines = np.array([to_rgb(COLORS[name]) for name in (*LOSSES, "reference")])
    strong = np.concatenate([ramp[:: RAMP // 8], ramp[-1:], lines])
    blends = np.concatenate([1 - share * (1 - strong) for share in (1.0, 0.75, 0.5, 0.25)])
    grey = np.linspace(0, 1, 16)[:, None].repeat(3, 1)
    colors = np.concatenate([grey, surfaces, blends])
    assert len(colors) <= 256, "the colours of a GIF file"
    image = Image.new("P", (1, 1))
    image.putpalette((255 * colors).round().astype(np.uint8).tobytes())
    return image


def _encoded(frames: Sequence[Image.Image]) -> bytes:
    """Return a GIF file of frames with the same colours."""
    file = io.BytesIO()
    each = min(400, max(50, round(100 * SECONDS / len(frames)) * 10))
    durations = [each] * (len(frames) - 1) + [PAUSE_MS]
    others = frames[1:]
    frames[0].save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=False)
    return file.getvalue()
