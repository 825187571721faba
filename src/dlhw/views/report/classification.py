"""Create the report on a picture classifier after training, for ``report=classifier``.

Numbers and tables are for the validation part and, if there is one, the test part. Only validation pictures are
shown, because decisions made after looking at mistakes in the test part would bias the test result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.models.modes import evaluating
from dlhw.storage.answer import Answer, Number
from dlhw.views.report.evaluation import EvaluatedPart, evaluate_part
from dlhw.views.report.filters import LayerFilters
from dlhw.views.report.saliency import Method, SaliencyUnavailable, grad_cam, gradient

Count = Annotated[int, Field(gt=0, le=1_000_000)]
Rows = list[dict[str, object]]


def check(data: Dataset) -> None:
    """Raise UsageError unless the dataset has pictures with classes; also called before training, to fail early."""
    if data.numeric_targets or not data.classes:
        raise UsageError(
            f"report=classifier: dataset={data.name} has numeric targets and no class labels; expected report=none"
        )
    if len(data.shape) != 3:
        shape = " x ".join(map(str, data.shape))
        raise UsageError(
            f"report=classifier: the samples of dataset={data.name} have shape {shape}, not that of pictures; "
            "expected report=none"
        )


def classifier(
    model: nn.Module,
    data: Dataset,
    *,
    untrained: Callable[[], nn.Module],
    mistakes: Count,
    confidence_percent: Annotated[float, Field(gt=0, lt=100)],
    saliency: Literal["grad_cam", "gradient", "none"],
    views: Count,
    filters: str | None,
    evaluation_batch_size: Count,
) -> Answer:
    """Return confusion matrices, accuracies with Wilson intervals, mistakes, saliency maps and filters.

    ``untrained`` returns the model as it was before training; it is called only if ``filters`` names a convolution.
    Nothing is random, and the weights and modes of ``model`` do not change. If the requested saliency method does not
    apply to the model, another one is used and a message says so.
    """
    from dlhw.views.report import figures  # imports matplotlib, which is not needed earlier

    check(data)
    confidence = confidence_percent / 100
    subject = subject_of(data)
    with evaluating(model):
        parts = [
            evaluate_part(model, data, name, split, batch_size=min(evaluation_batch_size, data.evaluated_at_once))
            for name, split in (("val", data.val), ("test", data.test))
            if split is not None
        ]
        validation = parts[0]
        drawings = {
            "confusion": figures.confusion(parts, name=subject),
            "per_class": figures.per_class(parts, confidence, name=subject),
        }
        messages = [evaluated.summary(confidence) for evaluated in parts]
        if not validation.mistakes:
            messages.append(f"mistakes: none among {len(validation.labels):,} validation pictures")
        else:
            wrong = validation.mistakes[:mistakes]
            pictures = to_pictures(data, network_inputs(data, validation, wrong))
            drawings["mistakes"] = figures.mistakes(validation, wrong, pictures, names=data.names, name=subject)
        if saliency != "none":
            positions = select_examples(validation, views)
            x = network_inputs(data, validation, positions)
            maps, source = saliency_maps(model, x, validation.predicted[positions].to(x.device), saliency)
            messages.append(f"saliency: {source}")
            if maps is not None:
                drawings["saliency"] = figures.saliency(
                    validation, positions, to_pictures(data, x), maps, source=source, name=subject
                )
    numbers = {name: number for evaluated in parts for name, number in accuracy_numbers(evaluated, confidence).items()}
    lists = {
        f"{name}_{evaluated.part}": rows
        for evaluated in parts
        for name, rows in tables(evaluated, confidence, names=data.names).items()
    }
    if filters is not None:
        layer = LayerFilters.of(untrained(), model, filters)
        numbers["filters_relative_change"] = layer.relative_change
        lists["filters"] = layer.rows()
        drawings["filters"] = figures.filters(layer, name=subject)
        messages.append(layer.summary())
    return Answer(numbers=numbers, tables=lists, figures=drawings, messages=messages)


def subject_of(data: Dataset) -> str:
    """Return the name for the titles of figures: that of the folder for the user's own pictures."""
    return PurePath(data.about.get("root", data.name)).name if data.name == "image_folder" else data.name


def network_inputs(data: Dataset, evaluated: EvaluatedPart, positions: list[int]) -> Tensor:
    """Return the network's inputs for the samples at ``positions`` of the validation part."""
    rows = evaluated.rows[positions].to(data.val.pool_y.device)
    return data.normalize(data.val.gather(rows[None])[0][0])


def to_pictures(data: Dataset, x: Tensor) -> Tensor:
    """Return inputs (N, C, H, W) as pictures (N, H, W, 3) on the CPU, scaled so that the brightest value is 1.

    They are in colour if there are three channels; otherwise each is the mean of the channels, in grey.
    """
    pixels = data.normalize.inverse(x).clamp(min=0).cpu()
    colours = pixels if x.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (colours / pixels.max().clamp(min=1e-12)).movedim(1, -1)


def select_examples(evaluated: EvaluatedPart, views: int) -> list[int]:
    """Return positions to draw: correct predictions from as many classes as possible, then confident mistakes.

    Half of them are mistakes if there are enough of both.
    """
    wrong = evaluated.mistakes[: views // 2]
    right = evaluated.most_confident_correct(views - len(wrong))
    return right + evaluated.mistakes[: views - len(right)]


def saliency_maps(model: nn.Module, x: Tensor, classes: Tensor, method: Method) -> tuple[Tensor | None, str]:
    """Return the maps (N, H, W) of the logits ``classes``, or None if no method applies, and a line on the method."""
    instead = ""
    try:
        if method == "grad_cam":
            try:
                maps, layer = grad_cam(model, x, classes)
                return maps.cpu(), f"Grad-CAM of layer {layer}"
            except SaliencyUnavailable as reason:
                instead = f" instead of Grad-CAM, because {reason}"
        return gradient(model, x, classes).cpu(), f"magnitude of the gradient with respect to the pixels{instead}"
    except SaliencyUnavailable as reason:
        return None, f"no maps, because {reason}"


def accuracy_numbers(evaluated: EvaluatedPart, confidence: float) -> dict[str, Number]:
    """Return the accuracy (0 to 1) and the ends of its interval, with names as in metrics.csv."""
    accuracy = evaluated.accuracy(confidence)
    low, high = accuracy.interval
    name = f"{evaluated.part}_accuracy"
    return {name: accuracy.value, f"{name}_low": low, f"{name}_high": high}


def tables(evaluated: EvaluatedPart, confidence: float, *, names: tuple[str, ...]) -> dict[str, Rows]:
    """Return the tables of a part: confusion matrix, accuracy by class, and mistakes, the most confident first."""
    confusion: Rows = [
        {"true_class": true, **{f"predicted {name}": n for name, n in zip(evaluated.classes, counts, strict=True)}}
        for true, counts in zip(evaluated.classes, evaluated.confusion.tolist(), strict=True)
    ]
    per_class: Rows = [
        {
            "class": name,
            "pictures": accuracy.count,
            "right": accuracy.right,
            "accuracy": accuracy.value,
            "accuracy_low": accuracy.interval[0],
            "accuracy_high": accuracy.interval[1],
        }
        for name, accuracy in zip(evaluated.classes, evaluated.by_class(confidence), strict=True)
    ]
    mistakes: Rows = [
        {
            "picture": names[row] if names else row,
            "true_class": evaluated.classes[evaluated.labels[position]],
            "predicted_class": evaluated.classes[evaluated.predicted[position]],
            "probability": float(evaluated.probability[position]),
            "probability_of_true": float(evaluated.probability_of_true[position]),
        }
        for position in evaluated.mistakes
        for row in [int(evaluated.rows[position])]
    ]
    return {"confusion": confusion, "per_class": per_class, "mistakes": mistakes}
