"""A network for ImageNet asked about pictures of one's own, as they are and more and more disturbed (D5.3)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.data.pictures import SUFFIXES
from dlhw.errors import UsageError
from dlhw.models.pretrained import Network
from dlhw.runs.answer import Answer, Check, at_most
from dlhw.runtime.randomness import generator
from dlhw.studies import imagenet
from dlhw.studies.imagenet import (
    check_crop,
    class_index,
    draw_answers,
    draw_picture,
    located,
    opened,
    probabilities,
    top,
)
from dlhw.studies.separability import wilson
from dlhw.views.plots import PALETTE, add_legend, label, new_figure

Count = Annotated[int, Field(ge=1)]
Strengths = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Row = dict[str, Any]
Disturb = Callable[[Tensor, float, torch.Generator], Tensor]

UNITS = {
    "noise": "standard deviation (of 255)",
    "blur": "standard deviation (pixels)",
    "rotation": "degrees",
    "crop": "share of the side that is kept",
}
DISTURBANCES: dict[str, Disturb] = {
    "noise": imagenet.noisy,
    "blur": lambda x, sigma, source: imagenet.blurred(x, sigma),
    "rotation": lambda x, degrees, source: imagenet.rotated(x, degrees, fill=imagenet.MEAN_COLOR),
    "crop": lambda x, share, source: imagenet.cropped(x, share),
}
LABELS = "labels.csv"


def gathered(path: Path, *, resize: int, crop: int) -> tuple[dict[str, Tensor], list[str]]:
    """The pictures (1, 3, crop, crop) by their files' names, and a line for each that cannot be read.

    Raises UsageError for one picture that cannot be read, and for a folder without any that can.
    """
    if not path.is_dir():
        return {path.name: opened(path, resize=resize, crop=crop)}, []
    pictures, refused = {}, []
    for file in sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES):
        try:
            pictures[file.name] = opened(file, resize=resize, crop=crop)
        except UsageError as error:
            refused.append(f"left out: {str(error).removeprefix('study.picture=')}")
    if not pictures:
        raise UsageError(
            f"study.picture={path}: no picture that can be read in this folder ({len(refused)} that cannot)"
        )
    return pictures, refused


def labelled(labels: str | None, folder: Path, network: Network) -> dict[str, int]:
    """The right class by file name, from a CSV file with the columns ``file`` and ``imagenet_index`` or ``label``.

    Rows without either are of pictures that show none of the classes. None: ``labels.csv`` beside the pictures, if any.
    """
    path = folder / LABELS if labels is None else Path(labels).expanduser()
    if labels is None and not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"study.labels={path}: cannot be read ({error})") from error
    columns = set(rows[0]) if rows else set()
    key = next((name for name in ("imagenet_index", "label") if name in columns), None)
    if "file" not in columns or key is None:
        raise UsageError(f"study.labels={path}: must have the columns file and imagenet_index (or label)")
    found = {}
    for line, row in enumerate(rows, 2):
        value = (row[key] or "").strip()
        if value:
            number = int(value) if key == "imagenet_index" and value.isdecimal() else value
            found[row["file"]] = class_index(network, f"study.labels={path}, line {line}: {key}", number)
    return found


def alexnet_classify(
    *,
    picture: str,
    labels: str | None,
    resize: Count,
    crop: Count,
    noise: Strengths,
    blur: Strengths,
    rotation: Strengths,
    crops: Annotated[list[Share], Field(min_length=1)],
    draws: Count,
    shown: Annotated[int, Field(ge=1, le=12)],
    network: Network,
    seed: int,
) -> Answer:
    """The five most probable classes of each picture, how many are right, and what is left of the first answers."""
    check_crop(network, resize=resize, crop=crop)
    path = located(picture)
    pictures, refused = gathered(path, resize=resize, crop=crop)
    right = labelled(labels, path if path.is_dir() else path.parent, network)
    right = {name: index for name, index in right.items() if name in pictures}
    clean = {name: probabilities(network, pixels)[0] for name, pixels in pictures.items()}
    answers = [
        {"file": name, **row, "right": row["index"] == right[name] if name in right else ""}
        for name, found in clean.items()
        for row in top(network, found)
    ]
    strengths = {"noise": noise, "blur": blur, "rotation": rotation, "crop": crops}
    table = [
        robustness(network, pictures, clean, right, kind=kind, strength=strength, draws=draws, seed=seed)
        for kind, values in strengths.items()
        for strength in sorted(set(values))
    ]
    accuracy = accuracies(answers, len(right))
    name = f"{network.architecture} on {path.name}"
    return Answer(
        numbers={
            "pictures": len(pictures),
            **{f"{row['measure']}_accuracy": row["share"] for row in accuracy},
            **weakest(table),
        },
        checks=undisturbed(table, clean),
        tables={"top5": answers, "robustness": table, **({"accuracy": accuracy} if accuracy else {})},
        figures={
            "top5": _top5(network, pictures, clean, right, shown=shown, title=f"alexnet_classify: {name}"),
            "robustness": _robustness(table, len(pictures), f"alexnet_classify: {name}"),
        },
        messages=[
            *refused,
            *("{file}: {rank}. {class} {probability:.4f}".format(**row) for row in answers if len(pictures) == 1),
            *(
                "{file}: {class} {probability:.4f}{verdict}".format(**row, verdict=_verdict(network, row, right))
                for row in answers
                if row["rank"] == 1 and len(pictures) > 1
            ),
            *(
                "{measure}: {right} of {pictures} right, {share:.3f} ({low:.3f} to {high:.3f})".format(**row)
                for row in accuracy
            ),
        ],
    )


def robustness(
    network: Network,
    pictures: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    right: Mapping[str, int],
    *,
    kind: str,
    strength: float,
    draws: int,
    seed: int,
) -> Row:
    """Of all pictures at one strength: the first answer's probability, and the share that still get that answer.

    Noise is drawn ``draws`` times for each picture, in the same directions at all strengths; a picture then counts by
    the share of its draws, and the interval, of as many trials as there are pictures, is Wilson's.
    """
    repeats = draws if kind == "noise" else 1
    kept, probability, correct = [], [], []
    for name, pixels in pictures.items():
        sources = [generator(seed, "classify", name, draw) for draw in range(repeats)]
        found = probabilities(network, torch.cat([DISTURBANCES[kind](pixels, strength, each) for each in sources]))
        first = int(clean[name].argmax())
        probability.append(found[:, first].mean().item())
        kept.append((found.argmax(1) == first).double().mean().item())
        if name in right:
            correct.append((found.argmax(1) == right[name]).double().mean().item())
    low, high = wilson(sum(kept), len(kept))
    return {
        "disturbance": kind,
        "strength": strength,
        "probability": sum(probability) / len(probability),
        "same_answer": sum(kept) / len(kept),
        "low": low,
        "high": high,
        "accuracy": sum(correct) / len(correct) if correct else "",
    }


def accuracies(answers: Sequence[Row], count: int) -> list[Row]:
    """Of the labelled pictures, how many have the right class first, and among the first five."""
    rows = []
    for measure, ranks in (("top1", 1), ("top5", 5)):
        hits = sum(row["right"] is True for row in answers if row["rank"] <= ranks)
        if count:
            low, high = wilson(hits, count)
            rows.append(
                {"measure": measure, "right": hits, "pictures": count, "share": hits / count, "low": low, "high": high}
            )
    return rows


def weakest(table: Sequence[Row]) -> dict[str, float]:
    """For each disturbance the share that keeps its answer at the greatest strength, of a crop the smallest."""
    ends = {}
    for kind in UNITS:
        own = [row for row in table if row["disturbance"] == kind]
        row = own[0 if kind == "crop" else -1]
        ends[f"same_answer_{kind}_{row['strength']:g}"] = row["same_answer"]
    return ends


def undisturbed(table: Sequence[Row], clean: Mapping[str, Tensor]) -> list[Check]:
    """At strength 0 (a crop: 1) nothing may change."""
    first = sum(found.max().item() for found in clean.values()) / len(clean)
    return [
        at_most(
            f"change of the first answers' probability at {row['disturbance']} {row['strength']:g}",
            abs(row["probability"] - first),
            1e-3,
        )
        for row in table
        if row["strength"] == (1 if row["disturbance"] == "crop" else 0)
    ]


def _verdict(network: Network, row: Row, right: Mapping[str, int]) -> str:
    if row["file"] not in right:
        return ""
    return ", right" if row["right"] else f", wrong: it is {network.categories[right[row['file']]]}"


def _top5(
    network: Network,
    pictures: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    right: Mapping[str, int],
    *,
    shown: int,
    title: str,
) -> Figure:
    """Some pictures, each beside its answers: evenly taken from all of them."""
    names = list(pictures)
    step = max(1, len(names) / shown)
    names = [names[int(index * step)] for index in range(min(shown, len(names)))]
    more = f"{len(names)} of {len(pictures)} pictures; " if len(names) < len(pictures) else ""
    figure, panels = new_figure(
        2 * len(names),
        title=title,
        subtitle=f"{more}the five most probable classes"
        + ("; green: the right one" if any(name in right for name in names) else ""),
        columns=4 if len(names) > 1 else 2,
        panel_inches=1.95 if len(names) > 1 else 3.5,
    )
    for index, name in enumerate(names):
        draw_picture(panels[2 * index], pictures[name][0], name)
        draw_answers(panels[2 * index + 1], top(network, clean[name]), right=right.get(name))
        panels[2 * index + 1].set_xticks([0, 0.5, 1])
    return figure


def _robustness(table: Sequence[Row], count: int, title: str) -> Figure:
    """Against the strength of each disturbance, what is left of the first answers."""
    figure, panels = new_figure(
        4,
        title=title,
        subtitle=f"{count} pictures, band: Wilson's 95 % interval; noise over several draws"
        if count > 1
        else "one picture; noise over several draws",
        panel_inches=2.5,
        foot_inches=0.3,
    )
    for axes, (kind, unit) in zip(panels, UNITS.items(), strict=True):
        own = [row for row in table if row["disturbance"] == kind]
        strengths = [row["strength"] for row in own]
        label(axes, x=unit, y="share, probability", title=kind)
        for name, column, style, color in (
            ("share that keep their first answer", "same_answer", "o-", PALETTE[0]),
            ("mean probability of that answer", "probability", "s--", PALETTE[1]),
        ):
            axes.plot(strengths, [row[column] for row in own], style, color=color, markersize=3.5, label=name)
        if count > 1:
            lows, highs = [row["low"] for row in own], [row["high"] for row in own]
            axes.fill_between(strengths, lows, highs, color=PALETTE[0], alpha=0.15, linewidth=0)
        axes.set_ylim(-0.03, 1.03)
        if kind == "crop":
            axes.invert_xaxis()
    add_legend(figure, *panels[0].get_legend_handles_labels(), loc="outside lower center", columns=2)
    return figure
