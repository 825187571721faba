"""Convolution from its definition as a sum: values, output sizes, parameters and multiply-adds (C4.1, E2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, close, equal, text
from dlhw.views.plots import TEXT_POINTS, new_figure

Filled = Field(min_length=1, max_length=1000)
Matrix = Annotated[list[Annotated[list[float], Filled]], Filled]
Count = Annotated[int, Field(ge=1, le=1000)]
Pair = tuple[Count, Count]

SHEET_X = [
    [-15, -10, -13, 12, 6, 2],
    [8, 12, 10, -1, 3, -15],
    [8, 10, 11, -14, -14, 5],
    [-4, 4, -11, -6, 13, 14],
    [-13, 3, 8, -3, -2, 15],
    [14, 12, -2, -9, -11, 0],
]
SHEET_FILTER = [[1 / 16, 2 / 16, 1 / 16], [2 / 16, 4 / 16, 2 / 16], [1 / 16, 2 / 16, 1 / 16]]
SHEET_LAYER = ([48, 64, 10], [3, 3, 10, 20])
SHEET_MAP = ((6, 4), (2, 2), (2, 2))


def output_size(size: int, kernel: int, *, stride: int, padding: int, dilation: int) -> int:
    """Return the number of positions of a kernel along an axis (C4.1): floor((n + 2 p - d (k - 1) - 1) / s) + 1.

    A kernel with k entries at distance d spans d (k - 1) + 1 places. On n places with padding p at either end its first
    entry may be at 0, s, 2 s, ... up to n + 2 p - span. Raise ValueError if the kernel does not fit.
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if room < 0:
        raise ValueError(f"a kernel spanning {dilation * (kernel - 1) + 1} does not fit into {size + 2 * padding}")
    return room // stride + 1


def padding_to_keep(size: int, kernel: int, *, stride: int, dilation: int) -> int | None:
    """Return the smallest padding, equal at both ends, that preserves the size; None if there is none.

    floor((n + 2 p - span) / s) + 1 = n means (n - 1) s <= n + 2 p - span < n s: p is half of (n - 1) s + span - n,
    rounded up, if that is below the upper bound. (At stride 1 there is none for an even span.)
    """
    missing = (size - 1) * stride + dilation * (kernel - 1) + 1 - size
    padding = -(-missing // 2)
    fits = output_size(size, kernel, stride=stride, padding=padding, dilation=dilation) == size
    return padding if fits else None


def convolve(x: Tensor, weight: Tensor, *, stride: Pair, padding: tuple[int, int], dilation: Pair) -> Tensor:
    """Return Z[b, m, i, j] = sum over n, u, v of W[m, n, u, v] X[b, n, s i + d u, s j + d v], X padded with zeros (E2).

    The kernel is not flipped: a convolution in deep learning is a cross-correlation. ``unfold`` gives a view of X with
    the axes (b, n, i, j, u, v), whose element is X[b, n, s i + d u, s j + d v]; the sum is then one product.

    Args:
        x: (batch, channels in, height, width).
        weight: (channels out, channels in, height, width).

    Raises:
        ValueError: the kernel is larger than the padded input.
    """
    (down, across), (high, wide) = padding, weight.shape[-2:]
    for axis, kernel in ((0, high), (1, wide)):
        output_size(x.shape[2 + axis], kernel, stride=stride[axis], padding=padding[axis], dilation=dilation[axis])
    padded = functional.pad(x, (across, across, down, down))
    windows = padded.unfold(2, dilation[0] * (high - 1) + 1, stride[0]).unfold(
        3, dilation[1] * (wide - 1) + 1, stride[1]
    )[..., :: dilation[0], :: dilation[1]]
    return torch.einsum("mnuv,bnijuv->bmij", weight, windows)


def parameters(kernel: Pair, channels_in: int, channels_out: int, *, bias: bool) -> int:
    """Return the number of parameters: each output channel has a kernel over all input channels and maybe a bias."""
    return channels_out * (kernel[0] * kernel[1] * channels_in + bias)


def multiply_adds(output: tuple[int, ...], kernel: Pair, channels_in: int) -> int:
    """Return the multiply-adds without biases: each output value is a sum of kernel size x channels in products."""
    height, width, channels_out = output
    return height * width * channels_out * kernel[0] * kernel[1] * channels_in


def total_variation(x: Tensor) -> float:
    """Return the sum of |differences| of neighbouring values along both last axes."""
    return (x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()).item()


def convolution(
    *,
    x: Literal["sheet"] | Matrix,
    filter: Literal["sheet"] | Matrix,
    stride: Count | Pair,
    padding: Annotated[int, Field(ge=0, le=1000)],
    dilation: Count,
    map_size: Pair,
    map_filter: Pair,
    map_stride: Pair,
    layer_input: Annotated[list[Count], Field(min_length=3, max_length=3)],
    layer_kernel: Annotated[list[Count], Field(min_length=4, max_length=4)],
    picture: Literal["china.jpg", "flower.jpg"],
    passes: Annotated[int, Field(ge=1, le=50)],
    draws: Annotated[int, Field(ge=20, le=100_000)],
    seed: int,
) -> Answer:
    """Convolve the matrices and a picture, compute sizes and costs, and compare with the sheets and with torch."""
    strides = (stride, stride) if isinstance(stride, int) else stride
    image = _parse_matrix("x", SHEET_X if x == "sheet" else x)
    kernel = _parse_matrix("filter", SHEET_FILTER if filter == "sheet" else filter)
    geometry: dict[str, Any] = {"stride": strides, "padding": (padding, padding), "dilation": (dilation, dilation)}
    try:
        y = convolve(image[None, None], kernel[None, None], **geometry)[0, 0]
    except ValueError as error:
        raise UsageError(f"study.filter: {error}; use a larger x or padding, or a smaller filter") from error
    is_sheet = x == "sheet" and filter == "sheet" and (strides, padding, dilation) == ((1, 1), 0, 1)
    settings = random_settings(draws, seed)
    shapes, shape_checks = shape_rows(map_size, map_filter, map_stride, layer_input, layer_kernel)
    layer_checks, layer_numbers = check_layer(layer_input, layer_kernel, shapes[-1], seed)
    photo, smoothed = filtered(picture, kernel, passes)
    variation_left = total_variation(smoothed[0]) / total_variation(photo)
    filter_name = "C4.1's" if filter == "sheet" else "the given"
    return Answer(
        numbers={**({"j": y[2, 1].item()} if is_sheet else {}), **layer_numbers, "variation_left": variation_left},
        checks=[
            *check_matrices(y, image, kernel, geometry=geometry, is_sheet=is_sheet),
            equal(
                "random settings with the same output size or error as torch",
                sum(row["same_size"] for row in settings),
                draws,
            ),
            at_most(
                "largest difference from torch in the random settings",
                max(row["difference"] for row in settings),
                1e-12,
            ),
            *shape_checks,
            *layer_checks,
            at_most(
                "total variation of the filtered picture, divided by that of the picture",
                variation_left,
                kernel.abs().sum().item() * (1 + 1e-12),
            ),
        ],
        tables={"y": _entries(y, is_sheet=is_sheet), "shapes": shapes, "random_settings": settings},
        figures={
            "matrices": _plot_matrices(
                image, kernel, y, stride=strides, padding=padding, dilation=dilation, is_sheet=is_sheet
            ),
            "picture": _plot_pictures(
                photo, smoothed, f"{picture} filtered with {filter_name} filter", passes, variation_left
            ),
        },
        messages=[
            "Y =",
            *("  " + "  ".join(f"{value:9.4f}" for value in line) for line in y.tolist()),
            *_shape_lines(shapes),
        ],
    )


def check_matrices(
    y: Tensor, image: Tensor, kernel: Tensor, *, geometry: dict[str, Any], is_sheet: bool
) -> list[Check]:
    """Check Y against torch's conv2d and, for the sheet's matrices, against the entry that C4.1 asks for."""
    expected = functional.conv2d(image[None, None], kernel[None, None], **geometry)[0, 0]
    scale = max(1.0, (image.abs().max() * kernel.abs().sum()).item())
    checks = [at_most("largest difference between Y and torch's", (y - expected).abs().max().item() / scale, 1e-14)]
    if is_sheet:
        checks.append(close("j, row 3 and column 2 of Y (C4.1)", y[2, 1].item(), -0.875, within=1e-12))
    return checks


def _entries(y: Tensor, *, is_sheet: bool) -> list[dict[str, Any]]:
    """Return the table of Y's entries; the sheet names its own by letters."""
    return [
        {"row": i + 1, "column": j + 1, "letter": _letter(i, j) if is_sheet else "", "value": value}
        for i, line in enumerate(y.tolist())
        for j, value in enumerate(line)
    ]


def random_settings(draws: int, seed: int) -> list[dict[str, Any]]:
    """Compute layers of random sizes, some too large for their input, by the formulas above and by torch's conv2d."""
    source = generator(seed, "convolution", "settings")

    def pick(low: int, high: int) -> Pair:
        first, second = torch.randint(low, high + 1, (2,), generator=source).tolist()
        return first, second

    rows = []
    for _ in range(draws):
        size, kernel, stride, padding, dilation = pick(1, 12), pick(1, 5), pick(1, 4), pick(0, 3), pick(1, 3)
        channels_in, channels_out = pick(1, 4)
        x = torch.randn(2, channels_in, *size, dtype=torch.float64, generator=source)
        weight = torch.randn(channels_out, channels_in, *kernel, dtype=torch.float64, generator=source)
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        try:
            axes = zip(size, kernel, stride, padding, dilation, strict=True)
            output = "x".join(str(output_size(n, k, stride=s, padding=p, dilation=d)) for n, k, s, p, d in axes)
        except ValueError:
            output = "none"
        try:
            expected = functional.conv2d(x, weight, **geometry)
            torch_output = "x".join(map(str, expected.shape[2:]))
        except RuntimeError:  # the kernel is larger than the padded input
            torch_output = "none"
        valid = "none" not in (output, torch_output)
        difference = (convolve(x, weight, **geometry) - expected).abs().max().item() if valid else 0.0
        sizes = {"input": size, "kernel": kernel, **geometry}
        row = {name: "x".join(map(str, value)) for name, value in sizes.items()}
        rows.append({**row, "output": output, "same_size": output == torch_output, "difference": difference})
    return rows


def shape_rows(
    size: Pair, kernel: Pair, stride: Pair, layer_input: list[int], layer_kernel: list[int]
) -> tuple[list[dict[str, Any]], list[Check]]:
    """Return a table row for each question about sizes, E2's layer last, and checks against the sheets' values."""
    axes = list(zip(size, kernel, stride, strict=True))
    try:
        out = [output_size(n, k, stride=s, padding=0, dilation=1) for n, k, s in axes]
    except ValueError as error:
        raise UsageError(f"study.map_filter={list(kernel)}: {error} (map_size={list(size)})") from error
    same_padding = [padding_to_keep(n, k, stride=s, dilation=1) for n, k, s in axes]
    side = output_size(22, 4, stride=2, padding=0, dilation=1)
    height, width, channels_in = layer_input
    high, wide, channels, channels_out = layer_kernel
    if channels != channels_in:
        raise UsageError(f"study.layer_kernel={layer_kernel}: its third number must be layer_input's, {channels_in}")
    try:
        rows, columns = (output_size(n, k, stride=1, padding=0, dilation=1) for n, k in ((height, high), (width, wide)))
    except ValueError as error:
        raise UsageError(f"study.layer_kernel={layer_kernel}: {error} (layer_input={layer_input})") from error
    unpadded = (0, 0)
    shapes = [
        _row("C4.1 map", (size, kernel, stride, unpadded), (*out, 1), 1, bias=False),
        _row("C4.1 22x22 pictures", ((22, 22), (4, 4), (2, 2), unpadded), (side, side, 1), 1, bias=False),
        _row(
            "E2",
            ((height, width), (high, wide), (1, 1), unpadded),
            (rows, columns, channels_out),
            channels_in,
            bias=True,
        ),
    ]
    if None not in same_padding:
        shapes.insert(
            1, _row("C4.1 map, same padding", (size, kernel, stride, same_padding), (*size, 1), 1, bias=False)
        )
    checks = [equal("parameters of one 4x4 filter without bias (C4.1)", shapes[-2]["parameters"], 16)]
    if (size, kernel, stride) == SHEET_MAP:
        checks += [
            equal("output size for map (6, 4), kernel (2, 2), stride (2, 2) (C4.1)", shapes[0]["output"], "3x2"),
            equal("same padding for map (6, 4): height x width (C4.1)", "x".join(map(str, same_padding)), "3x2"),
        ]
    if (layer_input, layer_kernel) == SHEET_LAYER:
        last = shapes[-1]
        checks += [
            equal("shape of Z and Y (E2.a)", last["output"] + f"x{channels_out}", "46x62x20"),
            equal("input and output channels (E2.b)", f"{channels_in}, {channels_out}", "10, 20"),
            equal("multiply-adds (E2.c)", last["multiply_adds"], 5_133_600),
            equal("parameters (E2.d)", last["parameters"], 1820),
        ]
    return shapes, checks


def check_layer(
    shape: list[int], kernel: list[int], counted: dict[str, Any], seed: int
) -> tuple[list[Check], dict[str, int]]:
    """Compare E2's layer Y = ReLU(Z) on random values with torch's, and its multiply-adds with torch's counter."""
    source = generator(seed, "convolution", "layer")
    x, weight = (torch.randn(*sizes, dtype=torch.float64, generator=source) for sizes in (shape, kernel))
    bias = torch.randn(kernel[3], dtype=torch.float64, generator=source)
    # X[i, j, n] and W[u, v, n, m] have the channels last; convolve and torch expect them first
    channels_first, filters = x.permute(2, 0, 1)[None], weight.permute(3, 2, 0, 1)
    z = convolve(channels_first, filters, stride=(1, 1), padding=(0, 0), dilation=(1, 1))[0].permute(1, 2, 0) + bias
    y = z.clamp(min=0)
    with FlopCounterMode(display=False) as counter:
        expected = functional.relu(functional.conv2d(channels_first, filters, bias))[0].permute(1, 2, 0)
    checks = [
        equal("computed shape of Y", "x".join(map(str, y.shape)), f"{counted['output']}x{kernel[3]}"),
        at_most("largest difference between E2's Y and torch's", (y - expected).abs().max().item(), 1e-11),
        equal("multiply-adds by torch's counter", counter.get_total_flops() // 2, counted["multiply_adds"]),
        equal("parameters, counted in weight and bias", weight.numel() + bias.numel(), counted["parameters"]),
    ]
    return checks, {"multiply_adds": counted["multiply_adds"], "parameters": counted["parameters"]}


def filtered(name: str, kernel: Tensor, passes: int) -> tuple[Tensor, list[Tensor]]:
    """Return a grey picture with values in [0, 1], and its results of one and of ``passes`` filterings."""
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(load_sample_image(name).copy()).to(torch.float64).mean(dim=-1) / 255
    if min(size - passes * (k - 1) for size, k in zip(photo.shape, kernel.shape, strict=True)) < 2:
        raise UsageError(f"study.passes={passes}: shrinks the picture to nothing; use fewer, or a smaller filter")
    out, kept = photo, []
    for i in range(passes):
        out = convolve(out[None, None], kernel[None, None], stride=(1, 1), padding=(0, 0), dilation=(1, 1))[0, 0]
        if i in (0, passes - 1):
            kept.append(out)
    return photo, kept


def _parse_matrix(name: str, rows: list[Any]) -> Tensor:
    if len({len(row) for row in rows}) > 1:
        raise UsageError(
            f"study.{name}: its rows have {sorted({len(row) for row in rows})} values; all must have the same length"
        )
    return torch.tensor(rows, dtype=torch.float64)


def _row(
    question: str, geometry: Sequence[Sequence[Any]], output: tuple[int, ...], channels_in: int, *, bias: bool
) -> dict[str, Any]:
    """Return a table row; ``geometry`` is input, kernel, stride and padding, each (down, across).

    ``output`` is (height, width, channels).
    """
    _, (high, wide), *_ = geometry
    pairs = zip(("input", "kernel", "stride", "padding", "output"), (*geometry, output[:2]), strict=True)
    return {
        "question": question,
        **{name: "x".join(map(str, pair)) for name, pair in pairs},
        "channels_in": channels_in,
        "channels_out": output[2],
        "parameters": parameters((high, wide), channels_in, output[2], bias=bias),
        "multiply_adds": multiply_adds(output, (high, wide), channels_in),
    }


def _shape_lines(shapes: list[dict[str, Any]]) -> list[str]:
    return [
        "{question}: input {input}, kernel {kernel}, stride {stride}, padding {padding}: output {output}, "
        "{parameters} parameters, {multiply_adds} multiply-adds".format(**row)
        for row in shapes
    ]


def _letter(i: int, j: int) -> str:
    return "abcdefghijklmnop"[4 * i + j]


def _plot_matrices(
    x: Tensor, kernel: Tensor, y: Tensor, *, stride: Pair, padding: int, dilation: int, is_sheet: bool
) -> Figure:
    shown = {"X": x, "F": kernel, "Y": y}
    figure, all_axes = new_figure(
        3,
        title="convolution: X, the filter F and Y = X * F",
        subtitle=f"stride {stride[0]} x {stride[1]}, padding {padding}, dilation {dilation}"
        + (f"; j = {text(y[2, 1].item())} is the sum of F times the framed part of X" if is_sheet else ""),
        panel_inches=2.6,
    )
    for axes, (name, values) in zip(all_axes, shown.items(), strict=True):
        _heat(axes, values, letters=is_sheet and name == "Y")
        axes.set_title(f"{name} ({values.shape[0]} x {values.shape[1]})", fontsize=TEXT_POINTS)
    if is_sheet:
        for axes, (left, top, side) in ((all_axes[0], (1, 2, 3)), (all_axes[2], (1, 2, 1))):
            frame = Rectangle(
                (left - 0.5, top - 0.5), side, side, fill=False, edgecolor="black", linewidth=2.2, zorder=4
            )
            axes.add_patch(frame)
    return figure


def _heat(axes: Axes, values: Tensor, *, letters: bool) -> None:
    """Plot a matrix as colours, blue below and orange above 0, with its numbers if there is room for them."""
    largest = max(values.abs().max().item(), 1e-300)
    axes.imshow(values.numpy(), cmap="PuOr_r", vmin=-1.6 * largest, vmax=1.6 * largest)
    axes.set_axis_off()
    columns = values.shape[1]
    if max(values.shape) <= 8:
        for (i, j), value in np.ndenumerate(values.numpy()):
            digits = f"{value:.4g}" if abs(value) >= 0.001 or value == 0 else f"{value:.0e}"
            note = f"{_letter(i, j)}\n{value:.4f}" if letters else digits.replace("-", "\N{MINUS SIGN}")
            size = min(8.0, 40 / columns)
            axes.text(j, i, note.replace("-", "\N{MINUS SIGN}"), ha="center", va="center", fontsize=size)


def _plot_pictures(photo: Tensor, smoothed: list[Tensor], name: str, passes: int, variation_left: float) -> Figure:
    """Plot a part of the picture at full resolution, before and after."""
    shown = [("before", photo), ("filtered once", smoothed[0])]
    if len(smoothed) > 1:
        shown.append((f"filtered {passes} times", smoothed[-1]))
    figure, all_axes = new_figure(
        len(shown),
        title=f"convolution: {name}",
        subtitle=f"filtering once leaves {100 * variation_left:.1f} % of the sum of |differences| of neighbouring "
        "pixels; a part of 110 x 110 pixels",
        panel_inches=2.6,
    )
    for axes, (title, values) in zip(all_axes, shown, strict=True):
        top, side = (
            max(0, start - (before - after) // 2)
            for start, before, after in zip((150, 190), photo.shape, values.shape, strict=True)
        )
        part = values[top : top + 110, side : side + 110].numpy()
        axes.imshow(part, cmap="gray", vmin=min(0, part.min()), vmax=max(1, part.max()), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, fontsize=TEXT_POINTS)
    return figure
