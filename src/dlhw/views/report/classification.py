"""After training a classifier of pictures: what it gets right and wrong, how sure that is, and what it looks at.

Numbers and tables are of the validation and, where there is one, the test part. Pictures are shown of the validation
part alone: whoever has seen the mistakes in the test part chooses with them in mind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.runs.answer import Answer, Number
from dlhw.views.report.evaluation import EvaluatedPart, evaluate_part
from dlhw.views.report.filters import LayerFilters
from dlhw.views.report.saliency import Method, SaliencyUnavailable, grad_cam, gradient

Count = Annotated[int, Field(gt=0)]
Rows = list[dict[str, object]]


def check(data: Dataset) -> None:
    """Raises UsageError unless these are pictures with classes; to be asked before training, not only after it."""
    if not data.classes:
        raise UsageError(
            f"report=classifier: dataset={data.name} has a number to predict, not classes; use report=none"
        )
    if len(data.shape) != 3:
        shape = " x ".join(map(str, data.shape))
        raise UsageError(
            f"report=classifier: dataset={data.name} has no pictures, its samples are {shape}; use report=none"
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
    """Confusion matrices, accuracies with Wilson intervals, the most confident mistakes, saliency maps, and filters.

    ``untrained`` makes the model as it was before training; it is called where ``filters`` names a convolution.
    Nothing is random, and ``model`` keeps its bits and modes. Where it does not lend itself to the kind of map that was
    asked for, the answer tells what was done instead.
    """
    from dlhw.views.report import figures  # imports matplotlib, which a run needs only now

    check(data)
    confidence = confidence_percent / 100
    with evaluating(model):
        parts = [
            evaluate_part(model, data, name, split, batch_size=min(evaluation_batch_size, data.evaluated_at_once))
            for name, split in (("val", data.val), ("test", data.test))
            if split is not None
        ]
        shown = parts[0]
        drawn = {
            "confusion": figures.confusion(parts, name=data.name),
            "per_class": figures.per_class(parts, confidence, name=data.name),
        }
        told = [evaluated.summary(confidence) for evaluated in parts]
        if not shown.mistakes:
            told.append(f"mistakes: none among {len(shown.labels):,} validation pictures")
        else:
            wrong = shown.mistakes[:mistakes]
            pictures = to_pictures(data, network_inputs(data, shown, wrong))
            drawn["mistakes"] = figures.mistakes(shown, wrong, pictures, names=data.names, name=data.name)
        if saliency != "none":
            at = select_examples(shown, views)
            x = network_inputs(data, shown, at)
            maps, source = saliency_maps(model, x, shown.predicted[at].to(x.device), saliency)
            told.append(f"saliency: {source}")
            if maps is not None:
                drawn["saliency"] = figures.saliency(
                    shown, at, to_pictures(data, x), maps, source=source, name=data.name
                )
    counted = {name: number for evaluated in parts for name, number in accuracy_numbers(evaluated, confidence).items()}
    listed = {
        f"{name}_{evaluated.part}": rows
        for evaluated in parts
        for name, rows in tables(evaluated, confidence, names=data.names).items()
    }
    if filters is not None:
        compared = LayerFilters.of(untrained(), model, filters)
        counted["filters_relative_change"] = compared.relative_change
        listed["filters"] = compared.rows()
        drawn["filters"] = figures.filters(compared, name=data.name)
        told.append(compared.summary())
    return Answer(
        numbers=counted,
        tables=listed,
        figures=drawn,
        told=told,
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def network_inputs(data: Dataset, evaluated: EvaluatedPart, positions: list[int]) -> Tensor:
    """What the network is given for these samples of the part."""
    rows = evaluated.rows[positions].to(data.val.pool_y.device)
    return data.normalize(data.val.gather(rows[None])[0][0])


def to_pictures(data: Dataset, x: Tensor) -> Tensor:
    """Inputs (N, C, H, W) as pictures (N, H, W, 3) of 0 to 1 on the CPU, the brightest value of all being 1.

    Colours where there are three channels, else grey, the channels' mean.
    """
    pixels = ((x - data.shift) / data.scale).clamp(min=0).cpu()
    colours = pixels if x.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (colours / pixels.max().clamp(min=1e-12)).movedim(1, -1)


def select_examples(evaluated: EvaluatedPart, views: int) -> list[int]:
    """Positions of right answers of as many classes as there can be, then the most confident mistakes: half each."""
    wrong = evaluated.mistakes[: views // 2]
    right = evaluated.most_confident_correct(views - len(wrong))
    return right + evaluated.mistakes[: views - len(right)]


def saliency_maps(model: nn.Module, x: Tensor, classes: Tensor, method: Method) -> tuple[Tensor | None, str]:
    """The maps (N, H, W) of the logits ``classes``, None where there can be none, and a line on where they are from."""
    instead = ""
    try:
        if method == "grad_cam":
            try:
                maps, layer = grad_cam(model, x, classes)
                return maps.cpu(), f"Grad-CAM of layer {layer}"
            except SaliencyUnavailable as reason:
                instead = f" instead of Grad-CAM, because {reason}"
        return gradient(model, x, classes).cpu(), f"size of the gradient by the pixels{instead}"
    except SaliencyUnavailable as reason:
        return None, f"no maps, because {reason}"


def accuracy_numbers(evaluated: EvaluatedPart, confidence: float) -> dict[str, Number]:
    """The part's accuracy (0 to 1) and the ends of its interval, named as in metrics.csv."""
    accuracy = evaluated.accuracy(confidence)
    low, high = accuracy.interval
    name = f"{evaluated.part}_accuracy"
    return {name: accuracy.value, f"{name}_low": low, f"{name}_high": high}


def tables(evaluated: EvaluatedPart, confidence: float, *, names: tuple[str, ...]) -> dict[str, Rows]:
    """Confusion matrix, accuracy by class and all mistakes, the most confident first."""
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
