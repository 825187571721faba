"""Classify pictures with a network trained on ImageNet, as they are and with increasing disturbances (D5.3)."""

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
from dlhw.intervals import score_interval
from dlhw.models.pretrained import TorchvisionNetwork
from dlhw.runtime.options import PathText
from dlhw.runtime.paths import printable
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most
from dlhw.studies import imagenet
from dlhw.studies.imagenet import (
    check_crop,
    class_index,
    picture_path,
    plot_answers,
    plot_picture,
    probabilities,
    read_picture,
    top_classes,
)
from dlhw.views.plots import PALETTE, add_legend, label, new_figure

Count = Annotated[int, Field(ge=1, le=4096)]
Strengths = Annotated[list[Annotated[float, Field(ge=0, le=1000)]], Field(min_length=1, max_length=100)]
Share = Annotated[float, Field(gt=0, le=1)]
Row = dict[str, Any]
Disturb = Callable[[Tensor, float, torch.Generator], Tensor]

UNITS = {
    "noise": "standard deviation (of 255)",
    "blur": "standard deviation (pixels)",
    "rotation": "degrees",
    "crop": "share of each side that is kept",
}
DISTURBANCES: dict[str, Disturb] = {
    "noise": imagenet.noisy,
    "blur": lambda x, sigma, source: imagenet.blurred(x, sigma),
    "rotation": lambda x, degrees, source: imagenet.rotated(x, degrees, fill=imagenet.MEAN_COLOR),
    "crop": lambda x, share, source: imagenet.cropped(x, share),
}
LABELS = "labels.csv"


def read_pictures(path: Path, *, resize: int, crop: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return the pictures (1, 3, crop, crop) by file name, and a message for each unreadable file.

    Raise UsageError if ``path`` is one unreadable picture, or a folder without any readable picture.
    """
    if not path.is_dir():
        return {printable(path.name): read_picture(path, resize=resize, crop=crop)}, []
    pictures, messages = {}, []
    for file in sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES):
        try:
            pictures[printable(file.name)] = read_picture(file, resize=resize, crop=crop)
        except UsageError as error:
            messages.append(f"skipped: {str(error).removeprefix('study.picture=')}")
    if not pictures:
        raise UsageError(
            f"study.picture={printable(path)}: no readable picture in this folder ({len(messages)} unreadable); "
            "must contain at least one"
        )
    return pictures, messages


def read_labels(labels: str | None, folder: Path, network: TorchvisionNetwork) -> dict[str, int]:
    """Return the true classes by file name, from a CSV file with columns ``file`` and ``imagenet_index`` or ``label``.

    Rows with an empty value are for pictures that show none of the classes. None means ``labels.csv`` beside the
    pictures, if it exists.
    """
    path = folder / LABELS if labels is None else Path(labels)
    if labels is None and not path.is_file():
        return {}
    if not path.is_file():
        raise UsageError(f"study.labels={printable(path)}: no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"study.labels={printable(path)}: cannot be read ({error})") from error
    columns = set(rows[0]) if rows else set()
    key = next((name for name in ("imagenet_index", "label") if name in columns), None)
    if "file" not in columns or key is None:
        raise UsageError(f"study.labels={printable(path)}: must have the columns file and imagenet_index (or label)")
    true_classes = {}
    for line, row in enumerate(rows, 2):
        value = (row[key] or "").strip()
        if value:
            number = int(value) if key == "imagenet_index" and len(value) <= 4 and value.isdecimal() else value
            true_classes[row["file"]] = class_index(
                network, f"study.labels={printable(path)}, line {line}: {key}", number
            )
    return true_classes


def alexnet_classify(
    *,
    picture: PathText,
    labels: PathText | None,
    resize: Count,
    crop: Count,
    noise: Strengths,
    blur: Strengths,
    rotation: Strengths,
    crops: Annotated[list[Share], Field(min_length=1, max_length=100)],
    draws: Count,
    shown: Annotated[int, Field(ge=1, le=12)],
    network: TorchvisionNetwork,
    seed: int,
) -> Answer:
    """Predict the five most probable classes of each picture, and measure how disturbances change the first one."""
    check_crop(network, resize=resize, crop=crop)
    path = picture_path(picture)
    pictures, messages = read_pictures(path, resize=resize, crop=crop)
    true_classes = read_labels(labels, path if path.is_dir() else path.parent, network)
    true_classes = {name: index for name, index in true_classes.items() if name in pictures}
    clean = {name: probabilities(network, pixels)[0] for name, pixels in pictures.items()}
    answers = [
        {"file": name, **row, "right": row["index"] == true_classes[name] if name in true_classes else ""}
        for name, probability in clean.items()
        for row in top_classes(network, probability)
    ]
    strengths = {"noise": noise, "blur": blur, "rotation": rotation, "crop": crops}
    table = [
        robustness(network, pictures, clean, true_classes, kind=kind, strength=strength, draws=draws, seed=seed)
        for kind, values in strengths.items()
        for strength in sorted(set(values))
    ]
    accuracy = accuracies(answers, len(true_classes))
    name = f"{network.architecture} on {printable(path.name)}"
    return Answer(
        numbers={
            "pictures": len(pictures),
            **{f"{row['measure']}_accuracy": row["share"] for row in accuracy},
            **shares_at_greatest_strength(table),
        },
        checks=undisturbed(table, clean),
        tables={"top5": answers, "robustness": table, **({"accuracy": accuracy} if accuracy else {})},
        figures={
            "top5": _top5(network, pictures, clean, true_classes, shown=shown, title=f"alexnet_classify: {name}"),
            "robustness": _robustness(table, len(pictures), f"alexnet_classify: {name}"),
        },
        messages=[
            *messages,
            *("{file}: {rank}. {class} {probability:.4f}".format(**row) for row in answers if len(pictures) == 1),
            *(
                "{file}: {class} {probability:.4f}{verdict}".format(**row, verdict=_verdict(network, row, true_classes))
                for row in answers
                if row["rank"] == 1 and len(pictures) > 1
            ),
            *(
                "{measure}: {right} of {pictures} correct, {share:.3f} ({low:.3f} to {high:.3f})".format(**row)
                for row in accuracy
            ),
        ],
    )


def robustness(
    network: TorchvisionNetwork,
    pictures: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    true_classes: Mapping[str, int],
    *,
    kind: str,
    strength: float,
    draws: int,
    seed: int,
) -> Row:
    """Disturb all pictures with one strength: return a row with the probability and share of unchanged first answers.

    Noise is drawn ``draws`` times for each picture, with the same directions at all strengths, and a picture counts
    with its share of draws. The interval is Wilson's, with one trial per picture.
    """
    repeats = draws if kind == "noise" else 1
    same_answer, probability, correct = [], [], []
    for name, pixels in pictures.items():
        sources = [generator(seed, "classify", name, draw) for draw in range(repeats)]
        disturbed = torch.cat([DISTURBANCES[kind](pixels, strength, source) for source in sources])
        outcome = probabilities(network, disturbed)
        first = int(clean[name].argmax())
        probability.append(outcome[:, first].mean().item())
        same_answer.append((outcome.argmax(1) == first).double().mean().item())
        if name in true_classes:
            correct.append((outcome.argmax(1) == true_classes[name]).double().mean().item())
    low, high = score_interval(sum(same_answer), len(same_answer))
    return {
        "disturbance": kind,
        "strength": strength,
        "probability": sum(probability) / len(probability),
        "same_answer": sum(same_answer) / len(same_answer),
        "low": low,
        "high": high,
        "accuracy": sum(correct) / len(correct) if correct else "",
    }


def accuracies(answers: Sequence[Row], count: int) -> list[Row]:
    """Return the top-1 and top-5 accuracy of the pictures with a label, with Wilson's interval."""
    rows = []
    for measure, ranks in (("top1", 1), ("top5", 5)):
        hits = sum(row["right"] is True for row in answers if row["rank"] <= ranks)
        if count:
            low, high = score_interval(hits, count)
            rows.append(
                {"measure": measure, "right": hits, "pictures": count, "share": hits / count, "low": low, "high": high}
            )
    return rows


def shares_at_greatest_strength(table: Sequence[Row]) -> dict[str, float]:
    """Return the share with an unchanged first answer at the greatest strength of each disturbance (smallest crop)."""
    ends = {}
    for kind in UNITS:
        matches = [row for row in table if row["disturbance"] == kind]
        row = matches[0 if kind == "crop" else -1]
        ends[f"same_answer_{kind}_{row['strength']:g}"] = row["same_answer"]
    return ends


def undisturbed(table: Sequence[Row], clean: Mapping[str, Tensor]) -> list[Check]:
    """Check that nothing changes at strength 0 (share 1 of a crop)."""
    first = sum(probability.max().item() for probability in clean.values()) / len(clean)
    return [
        at_most(
            f"change of the mean probability of the predicted classes at {row['disturbance']} {row['strength']:g}",
            abs(row["probability"] - first),
            1e-3,
        )
        for row in table
        if row["strength"] == (1 if row["disturbance"] == "crop" else 0)
    ]


def _verdict(network: TorchvisionNetwork, row: Row, true_classes: Mapping[str, int]) -> str:
    if row["file"] not in true_classes:
        return ""
    return (
        ", correct" if row["right"] else f", wrong: the true class is {network.categories[true_classes[row['file']]]}"
    )


def _top5(
    network: TorchvisionNetwork,
    pictures: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    true_classes: Mapping[str, int],
    *,
    shown: int,
    title: str,
) -> Figure:
    """Plot some pictures, evenly spaced among all of them, each beside its answers."""
    names = list(pictures)
    step = max(1, len(names) / shown)
    names = [names[int(index * step)] for index in range(min(shown, len(names)))]
    more = f"{len(names)} of {len(pictures)} pictures; " if len(names) < len(pictures) else ""
    figure, panels = new_figure(
        2 * len(names),
        title=title,
        subtitle=f"{more}the five most probable classes"
        + ("; green: the true class" if any(name in true_classes for name in names) else ""),
        columns=4 if len(names) > 1 else 2,
        panel_inches=1.95 if len(names) > 1 else 3.5,
    )
    for index, name in enumerate(names):
        plot_picture(panels[2 * index], pictures[name][0], name)
        plot_answers(panels[2 * index + 1], top_classes(network, clean[name]), true_class=true_classes.get(name))
        panels[2 * index + 1].set_xticks([0, 0.5, 1])
    return figure


def _robustness(table: Sequence[Row], count: int, title: str) -> Figure:
    """Plot the share of unchanged first answers and their mean probability against the strength of each disturbance."""
    figure, panels = new_figure(
        4,
        title=title,
        subtitle=f"{count} pictures; band: 95 % Wilson interval; noise: mean of several draws"
        if count > 1
        else "one picture; noise: mean of several draws",
        panel_inches=2.5,
        foot_inches=0.3,
    )
    for axes, (kind, unit) in zip(panels, UNITS.items(), strict=True):
        matches = [row for row in table if row["disturbance"] == kind]
        strengths = [row["strength"] for row in matches]
        label(axes, x=unit, y="share, probability", title=kind)
        for name, column, style, color in (
            ("share with the same first answer", "same_answer", "o-", PALETTE[0]),
            ("mean probability of that answer", "probability", "s--", PALETTE[1]),
        ):
            axes.plot(strengths, [row[column] for row in matches], style, color=color, markersize=3.5, label=name)
        if count > 1:
            lows, highs = [row["low"] for row in matches], [row["high"] for row in matches]
            axes.fill_between(strengths, lows, highs, color=PALETTE[0], alpha=0.15, linewidth=0)
        axes.set_ylim(-0.03, 1.03)
        if kind == "crop":
            axes.invert_xaxis()
    add_legend(figure, *panels[0].get_legend_handles_labels(), loc="outside lower center", columns=2)
    return figure
