"""The report on a classifier: numbers equal a direct computation, saliency maps equal the papers' formulas."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import open_dict
from scipy.stats import binomtest
from torch import Tensor, nn

from dlhw import load_run
from dlhw.cli.assembly import assemble
from dlhw.cli.build import build
from dlhw.data.normalization import Normalization
from dlhw.data.tensors import Dataset, Split
from dlhw.errors import UsageError
from dlhw.intervals import wilson
from dlhw.models.by_hand import cnn_by_hand
from dlhw.models.convolutional import cnn
from dlhw.models.dense import mlp
from dlhw.runs.answer import Answer
from dlhw.runs.record import Record
from dlhw.train import run as train
from dlhw.views import report
from dlhw.views.report import figures
from dlhw.views.report.classification import network_inputs, select_examples, to_pictures
from dlhw.views.report.evaluation import EvaluatedPart, evaluate_part
from dlhw.views.report.filters import LayerFilters, convolution
from dlhw.views.report.saliency import SaliencyUnavailable, grad_cam, gradient
from support.composing import Compose


def not_needed() -> nn.Module:
    """Raise an error: without filters, the untrained model must not be made."""
    raise AssertionError


OPTIONS: dict[str, Any] = {
    "untrained": not_needed,
    "mistakes": 4,
    "confidence_percent": 95.0,
    "saliency": "grad_cam",
    "views": 5,
    "filters": None,
    "evaluation_batch_size": 7,
}
CLASSES = ("ant", "bee", "true_class")


def drawn_pictures(
    count: int = 40, channels: int = 3, side: int = 8, size: int | None = None, **others: Any
) -> Dataset:
    """Return random pictures in three classes: 16 for training, half of the others for validation, half for test."""
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(1))
    x, y = pixels.to(torch.uint8), torch.arange(count) % 3
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    train, val, test = (Split(x, y, rows) for rows in order.tensor_split([16, 16 + (count - 16) // 2]))
    shape = (channels, side, side)
    normalize = Normalization.of_pixels([0.4] * channels, [0.2] * channels, largest=255, shape=shape, size=size)
    names = tuple(f"folder/{row}.jpg" for row in range(count))
    data = Dataset("drawn", train, val, test, normalize, CLASSES, "", names=names)
    return replace(data, **others).to("cpu", torch.float64)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return drawn_pictures()


def network(data: Dataset) -> nn.Sequential:
    torch.manual_seed(6)  # gives positive maps for all classes
    options = {"channels": [4, 5], "kernel": 3, "activation": "ReLU", "dropout": 0.5, "batch_norm": True}
    return cnn(data.shape, len(data.classes), **options).double()


class Planted(nn.Module):
    """A model with given logits for each sample of the validation part."""

    def __init__(self, data: Dataset, logits: Tensor) -> None:
        super().__init__()
        self.logits = {data.normalize(x[None]).sum().item(): row for x, row in zip(data.val.x, logits, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.logits[picture[None].sum().item()] for picture in x]) + 0 * x.sum()


def knowing(data: Dataset, wrong: int) -> Planted:
    """A model that is wrong only for the first ``wrong`` validation pictures, and more confident for later ones."""
    logits = nn.functional.one_hot((data.val.y + (torch.arange(len(data.val)) < wrong)) % 3, 3).double()
    return Planted(data, logits * (1 + 0.1 * torch.arange(len(data.val)))[:, None])


# --- intervals ---------------------------------------------------------------------------------------------


@given(st.integers(1, 20_000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_interval_equals_scipys(count: int, drawn: st.DataObject, confidence: float) -> None:
    right = drawn.draw(st.integers(0, count))
    interval = binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert wilson(right, count, confidence) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(1, 2), (131, 153), (140, 153), (9, 10), (9_800, 10_000)])
def test_interval_ends_are_two_of_their_standard_errors_away(right: int, count: int) -> None:
    confidence = math.erf(2 / math.sqrt(2))
    for end in wilson(right, count, confidence):
        assert abs(right / count - end) == pytest.approx(2 * math.sqrt(end * (1 - end) / count), rel=1e-9)


def test_interval_is_within_0_and_1() -> None:
    assert wilson(0, 7, 0.95)[0] == 0.0
    assert wilson(7, 7, 0.95)[1] == 1.0
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_a_wide_interval_is_noted(data: Dataset) -> None:
    model = knowing(data, wrong=1)
    evaluated = evaluate_part(model, data, "val", data.val, batch_size=100)
    assert (
        evaluated.summary(0.95)
        == "validation, 12 pictures: accuracy 91.7 %, 95 % interval 64.6 to 98.5 % (wide: few pictures)"
    )
    many = EvaluatedPart(
        "test", ("a",), *(torch.zeros(9999, dtype=torch.long) for _ in range(3)), *(torch.ones(2, 9999))
    )
    assert many.summary(0.9) == "test, 9,999 pictures: accuracy 100.00 %, 90 % interval 99.97 to 100.00 %"


# --- predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_evaluation_equals_a_direct_computation(data: Dataset, batch_size: int) -> None:
    model = network(data).eval()
    assert data.test is not None
    for part, split in (("val", data.val), ("test", data.test)):
        evaluated = evaluate_part(model, data, part, split, batch_size=batch_size)
        probabilities = model(data.normalize(split.x)).detach().softmax(1)
        expected = torch.zeros(3, 3, dtype=torch.long)
        for at, (true, row) in enumerate(zip(split.y.tolist(), probabilities, strict=True)):
            expected[true, int(row.argmax())] += 1
            assert float(evaluated.probability[at]) == pytest.approx(float(row.max()), rel=1e-9)
            assert float(evaluated.probability_of_true[at]) == pytest.approx(float(row[true]), rel=1e-9)
        assert evaluated.confusion.equal(expected)
        assert evaluated.rows.equal(split.all_rows()[0])


def test_mistakes_are_sorted_by_confidence(data: Dataset) -> None:
    evaluated = evaluate_part(knowing(data, wrong=5), data, "val", data.val, batch_size=100)
    assert evaluated.mistakes == [4, 3, 2, 1, 0]
    assert evaluated.accuracy(0.95).right == len(data.val) - 5


def test_confident_correct_predictions_cover_all_classes(data: Dataset) -> None:
    evaluated = evaluate_part(knowing(data, wrong=2), data, "val", data.val, batch_size=100)
    first, second = evaluated.most_confident_correct(3), evaluated.most_confident_correct(6)[3:]
    assert sorted(int(evaluated.labels[at]) for at in first) == [0, 1, 2]
    for at in first:
        same = [other for other in range(2, len(data.val)) if evaluated.labels[other] == evaluated.labels[at]]
        assert at == max(same)
    assert not set(first) & set(second)


@pytest.mark.parametrize(("wrong", "right_shown", "wrong_shown"), [(12, 0, 5), (1, 4, 1), (0, 5, 0), (5, 3, 2)])
def test_half_of_the_views_are_mistakes_if_there_are_enough(
    data: Dataset, wrong: int, right_shown: int, wrong_shown: int
) -> None:
    evaluated = evaluate_part(knowing(data, wrong=wrong), data, "val", data.val, batch_size=100)
    right = [bool(evaluated.predicted[at] == evaluated.labels[at]) for at in select_examples(evaluated, 5)]
    assert right == [True] * right_shown + [False] * wrong_shown


# --- saliency maps -------------------------------------------------------------------------------------


def test_grad_cam_after_mean_pooling_is_the_class_activation_map(data: Dataset) -> None:
    """Here y_c = b + sum_k w_ck mean_ij A^k_ij, so alpha_k = w_ck / Z (section 3.1 of the paper)."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).double().eval()
    x, classes = data.normalize(data.val.x), data.val.y
    maps, layer = grad_cam(model, x, classes)
    weights = model[3].weight.detach()[classes] / 36
    expected = torch.einsum("nk,nkij->nij", weights, features(x).detach()).relu()
    enlarged = nn.functional.interpolate(expected[:, None], (8, 8), mode="bilinear")[:, 0]
    assert float((maps - enlarged).abs().max()) < 1e-12
    assert layer == "0 (Sequential, 6 x 6)"
    assert float(maps.max()) > 0


def test_in_place_activations_give_the_same_maps(data: Dataset) -> None:
    def model(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.Conv2d(6, 3, 1), nn.ReLU(inplace)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()

    x, classes = data.normalize(data.val.x), data.val.y
    assert grad_cam(model(True), x, classes)[0].equal(grad_cam(model(False), x, classes)[0])


def test_maps_with_autocast_differ_only_by_its_precision() -> None:
    data = drawn_pictures().to("cpu", torch.float32)
    model, x = network(data).float().eval(), data.normalize(data.val.x)
    maps, _ = grad_cam(model, x, data.val.y)
    with torch.autocast("cpu", torch.bfloat16):
        lower, _ = grad_cam(model, x, data.val.y)
    assert lower.dtype == maps.dtype
    assert 0 < float((lower - maps).abs().max()) < 0.05 * float(maps.max())


def test_maps_do_not_depend_on_the_batch(data: Dataset) -> None:
    model, x = network(data).eval(), data.normalize(data.val.x)
    for method in (lambda *given: grad_cam(*given)[0], gradient):
        together = method(model, x, data.val.y)
        alone = torch.cat([method(model, x[i : i + 1], data.val.y[i : i + 1]) for i in range(len(x))])
        assert float((together - alone).abs().max()) < 1e-12
        assert (together.amax((1, 2)) > 0).sum() > len(x) / 2


def test_gradient_of_a_linear_model_is_its_weights(data: Dataset) -> None:
    model = mlp(data.shape, 3, hidden=[], activation="ReLU", dropout=0.0, batch_norm=False).double()
    (weight,) = (parameter for parameter in model.parameters() if parameter.ndim == 2)
    maps = gradient(model, data.normalize(data.val.x), data.val.y)
    assert maps.equal(weight.detach()[data.val.y].view(-1, 3, 8, 8).abs().amax(1))


@pytest.mark.parametrize("saliency", ["grad_cam", "gradient", "none"])
@pytest.mark.parametrize("frozen", [False, True])
def test_model_is_not_changed(data: Dataset, saliency: str, frozen: bool) -> None:
    model = network(data).train()
    model[1].eval()
    model.requires_grad_(not frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        answer = report.classifier(model, data, **OPTIONS | {"saliency": saliency})
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad is not frozen and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert ("saliency" in answer.figures) == (saliency != "none")


def without_maps(shape: tuple[int, ...]) -> nn.Module:
    return mlp(shape, 3, hidden=[5], activation="ReLU", dropout=0.0, batch_norm=False)


def by_hand(shape: tuple[int, ...]) -> nn.Module:
    return cnn_by_hand(shape, 3, channels=[2], kernel=3, activation="ReLU")


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (without_maps, "Sequential"),
        (by_hand, "ByHand"),
    ],
)
def test_a_network_without_feature_maps_gets_gradient_maps(
    data: Dataset, make: Callable[[tuple[int, ...]], nn.Module], source: str
) -> None:
    answer = report.classifier(make(data.shape).double(), data, **OPTIONS)
    assert answer.messages[-1] == (
        "saliency: magnitude of the gradient with respect to the pixels instead of Grad-CAM, "
        f"because no layer of {source} outputs feature maps"
    )
    assert "saliency" in answer.figures


def test_without_any_saliency_method_there_is_a_message_and_no_figure(data: Dataset) -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3, dtype=x.dtype).requires_grad_() * x.detach().mean()

    with pytest.raises(SaliencyUnavailable):
        gradient(Blind(), data.normalize(data.val.x), data.val.y)
    answer = report.classifier(Blind(), data, **OPTIONS)
    assert answer.messages[-1] == "saliency: no maps, because Blind has no gradient with respect to its input"
    assert set(answer.figures) == {"confusion", "per_class", "mistakes"}


# --- the report -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(data: Dataset) -> Answer:
    return report.classifier(network(data), data, **OPTIONS)


def test_tables_and_numbers_agree(data: Dataset, answer: Answer) -> None:
    assert data.test is not None
    for part, split in (("val", data.val), ("test", data.test)):
        confusion, by_class, mistakes = (
            answer.tables[f"{name}_{part}"] for name in ("confusion", "per_class", "mistakes")
        )
        assert [list(row) for row in confusion] == [["true_class", *(f"predicted {name}" for name in CLASSES)]] * 3
        counts = [[int(str(row[f"predicted {name}"])) for name in CLASSES] for row in confusion]
        right = sum(counts[i][i] for i in range(3))
        assert sum(map(sum, counts)) == len(split)
        assert answer.numbers[f"{part}_accuracy"] == right / len(split)
        assert len(mistakes) == len(split) - right
        for i, row in enumerate(by_class):
            assert (row["pictures"], row["right"]) == (sum(counts[i]), counts[i][i])
            assert (row["accuracy_low"], row["accuracy_high"]) == wilson(counts[i][i], sum(counts[i]), 0.95)
        for row in mistakes:
            at = data.names.index(str(row["picture"]))
            assert data.classes[split.pool_y[at]] == row["true_class"] != row["predicted_class"]


def test_without_a_test_part_there_are_only_validation_results(data: Dataset) -> None:
    answer = report.classifier(network(data), replace(data, test=None), **OPTIONS)
    assert set(answer.numbers) == {"val_accuracy", "val_accuracy_low", "val_accuracy_high"}
    assert set(answer.tables) == {"confusion_val", "per_class_val", "mistakes_val"}


def test_without_mistakes_there_is_a_message_and_no_figure(data: Dataset) -> None:
    answer = report.classifier(knowing(data, wrong=0), replace(data, test=None), **OPTIONS | {"saliency": "none"})
    assert answer.messages[-1] == "mistakes: none among 12 validation pictures"
    assert "mistakes" not in answer.figures
    assert answer.tables["mistakes_val"] == []


def test_report_is_deterministic(data: Dataset, answer: Answer, tmp_path: Path) -> None:
    again = report.classifier(network(data), data, **OPTIONS)
    for name, result in (("a", answer), ("b", again)):
        (tmp_path / name).mkdir()
        result.write(Record(tmp_path / name))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 10
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_accuracy_equals_metrics_csv_at_the_best_epoch(compose: Compose, tmp_path: Path) -> None:
    """The best epoch is the first, because the second has a learning rate 1000 times as large."""
    worse = ["trainer.epochs=2", "scheduler=step", "scheduler.every_epochs=1", "scheduler.factor=1000"]
    small = ["model=mlp", "model.hidden=[16]", "model.batch_norm=true", "dataset=digits", "trainer.device=cpu"]
    cfg = compose("report=classifier", *small, *worse)
    with open_dict(cfg):
        del cfg.hydra
    train(cfg, Record(tmp_path))
    summary = load_run(tmp_path).summary
    assert summary["best"]["epoch"] == 1
    for part in ("val", "test"):
        assert summary[f"{part}_accuracy"] == pytest.approx(summary["best"][f"{part}_accuracy"], rel=1e-12)
        assert summary[f"{part}_accuracy"] != pytest.approx(summary["final"][f"{part}_accuracy"], rel=0.1)
    assert len(list((tmp_path / "figures").iterdir())) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"classes": ()},
            "report=classifier: dataset=drawn is for regression and has no classes; expected report=none",
        ),
        (
            {part: Split(torch.zeros(3, 5), torch.zeros(3)) for part in ("train", "val", "test")},
            "report=classifier: the samples of dataset=drawn have shape 5, not that of pictures; expected report=none",
        ),
    ],
)
def test_a_dataset_without_pictures_or_classes_is_an_error(
    data: Dataset, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        report.check(replace(data, **changed))
    assert str(refused.value) == message


def test_the_report_is_built_from_the_config(compose: Compose, data: Dataset) -> None:
    cfg = compose("report=classifier", "trainer.evaluation_batch_size=9")
    assert cfg.report.evaluation_batch_size == 9
    assert isinstance(build(cfg, "report", model=network(data), data=data, untrained=not_needed), Answer)
    assert compose("report=none").report == compose().report == {"_target_": None}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("report.mistakes=0", "must be greater than 0"),
        ("report.views=1.5", "must be a whole number"),
        ("report.confidence_percent=100", "must be less than 100"),
        ("report.filters=3", "must be a string"),
        ("report.saliency=cam", "must be 'grad_cam', 'gradient' or 'none'"),
    ],
)
def test_an_invalid_option_gives_a_one_line_error(compose: Compose, option: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(compose("report=classifier", option), "report", model=None, data=None, untrained=None)
    assert str(refused.value).startswith(f"{option}: {message}")
    assert "\n" not in str(refused.value)


# --- filters ----------------------------------------------------------------------------------------------


def convolutions(channels: int = 3, count: int = 4) -> nn.Module:
    torch.manual_seed(3)
    maps = [nn.Conv2d(channels, count, 3), nn.ReLU(), nn.Conv2d(count, 5, 3), nn.ReLU()]
    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).double()


def test_filters_table_shows_known_changes(data: Dataset) -> None:
    """One filter is doubled, one negated, one unchanged, and one moved at a right angle by 0.75 of its norm."""
    model = convolutions()
    before = model[0].weight.detach().clone()
    right_angle = before[3].flip(0) * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    right_angle -= (right_angle * before[3]).sum() / before[3].square().sum() * before[3]
    right_angle *= 0.75 * before[3].norm() / right_angle.norm()
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([2 * before[0], -before[1], before[2], before[3] + right_angle]))
    options = OPTIONS | {"filters": "first", "untrained": convolutions}
    answer = report.classifier(model, data, **options)
    rows = answer.tables["filters"]
    assert [row["filter"] for row in rows] == [0, 1, 2, 3]
    assert [row["norm_before"] for row in rows] == pytest.approx(before.flatten(1).norm(dim=1).tolist(), rel=1e-12)
    assert [row["relative_change"] for row in rows] == pytest.approx([1, 2, 0, 0.75], rel=1e-9)
    assert [row["cosine"] for row in rows] == pytest.approx([1, -1, 1, 0.8], rel=1e-9)
    changes = [float(str(row["norm_of_change"])) for row in rows]
    assert answer.numbers["filters_relative_change"] == pytest.approx(math.hypot(*changes) / float(before.norm()))
    most = changes.index(max(changes))
    assert answer.messages[-1].startswith("filters of layer 0: 4 of shape 3x3x3; relative change ")
    assert answer.messages[-1].endswith(f" %, largest for filter {most}")
    assert [axes.get_title() for axes in answer.figures["filters"].axes] == ["before", "after", "after − before"]


def test_unchanged_filters_are_noted(data: Dataset) -> None:
    answer = report.classifier(convolutions(), data, **OPTIONS | {"filters": "2", "untrained": convolutions})
    assert answer.messages[-1] == "filters of layer 2: 5 of shape 4x3x3; none changed"
    assert answer.numbers["filters_relative_change"] == 0
    assert "no filter changed" in answer.figures["filters"].texts[-1].get_text()


def tiles(axes: Any, count: int) -> Tensor:
    """Return the 3x3 filters in a mosaic, (count, 3, 3, ...)."""
    drawn = torch.as_tensor(axes.images[0].get_array())
    columns = math.ceil(math.sqrt(count))
    corners = [(4 * (at // columns), 4 * (at % columns)) for at in range(count)]
    return torch.stack([drawn[row : row + 3, column : column + 3] for row, column in corners])


def test_filters_and_their_change_are_drawn_around_middle_grey() -> None:
    before = torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = 0.1 * before.flip(0)
    drawn = figures.filters(LayerFilters("conv1", before, before + change), name="x").axes
    largest = torch.maximum(before.abs(), (before + change).abs()).amax((1, 2, 3), keepdim=True)
    expected = [before / largest, (before + change) / largest, change / change.abs().max()]
    for axes, weights in zip(drawn, expected, strict=True):
        assert float((tiles(axes, 5) - (0.5 + weights.movedim(1, -1) / 2)).abs().max()) < 1e-12


def test_only_the_64_filters_that_changed_most_are_drawn() -> None:
    before = torch.zeros(100, 7, 3, 3, dtype=torch.float64)
    after = before + torch.arange(100).view(-1, 1, 1, 1)
    figure = figures.filters(LayerFilters("conv1", before, after), name="x")
    subtitle = " ".join(text.get_text() for text in figure.texts)
    assert "The 64 of 100 filters that changed most, in order, first of 7 channels" in subtitle
    shown = tiles(figure.axes[2], 64)[:, 0, 0]
    assert float((shown - (0.5 + torch.arange(99, 35, -1, dtype=torch.float64) / 198)).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (
            convolutions(),
            "conv1",
            "report.filters=conv1: no such convolution in the model; expected one of first, 0, 2",
        ),
        (nn.Linear(2, 3), "first", "report.filters=first: the model has no convolution; expected report.filters=null"),
    ],
)
def test_a_name_that_is_not_a_convolution_is_an_error(model: nn.Module, name: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        convolution(model, name)
    assert str(refused.value) == message


SMALL_CNN = ["model=cnn", "model.channels=[4,5]", "model.kernel=3", "dataset=digits", "trainer.device=cpu"]


def test_filters_before_training_are_the_initial_ones(compose: Compose, tmp_path: Path) -> None:
    cfg = compose("report=classifier", *SMALL_CNN, "report.filters=first", "trainer.epochs=1", "init=he", "seed=5")
    with open_dict(cfg):
        del cfg.hydra
    begun = assemble(cfg).model
    (before,) = [p.detach() for name, p in begun.named_parameters() if p.ndim == 4 and p.shape[1] == 1]
    train(cfg, Record(tmp_path))
    with (tmp_path / "tables" / "filters.csv").open() as file:
        norms = [float(row["norm_before"]) for row in csv.DictReader(file)]
    assert norms == pytest.approx(before.flatten(1).norm(dim=1).tolist(), rel=1e-6)
    assert load_run(tmp_path).summary["filters_relative_change"] > 0


def test_an_invalid_filters_option_is_an_error_before_training(compose: Compose) -> None:
    with pytest.raises(
        UsageError, match=r"^report\.filters=conv1: no such convolution in the model; expected one of first, "
    ):
        assemble(compose("report=classifier", *SMALL_CNN, "report.filters=conv1"))


# --- figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, None), (3, None), (3, 12), (2, None)])
def test_pictures_are_drawn_at_the_size_of_the_network_input(channels: int, size: int | None) -> None:
    data = drawn_pictures(channels=channels, size=size)
    evaluated = evaluate_part(network(data).eval(), data, "val", data.val, batch_size=100)
    shown = to_pictures(data, network_inputs(data, evaluated, [2, 0]))
    x = data.val.x[[2, 0]].double()
    if size is not None:
        x = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    x = x if channels == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert shown.shape == (2, size or 8, size or 8, 3)
    brightest = data.normalize(data.val.x[[2, 0]])
    white = data.normalize.inverse(brightest).max()
    assert float((shown - x.movedim(1, -1) / white).abs().max()) < 1e-12


def made_up(part: str, classes: int, count: int = 500) -> EvaluatedPart:
    labels = torch.arange(count) % max(classes - 1, 1)  # none of the last class
    predicted = torch.where(torch.arange(count) % 5 == 0, (labels + 1) % classes, labels)
    probability = torch.linspace(0.3, 1, count, dtype=torch.float64)
    names = tuple(f"$class_{i}$ of a rather long name" for i in range(classes))
    return EvaluatedPart(part, names, torch.arange(count), labels, predicted, probability, probability)


@pytest.mark.parametrize("parts", [("val",), ("val", "test")])
@pytest.mark.parametrize("classes", [2, 10, 101])
def test_figures_are_drawn_for_few_and_many_classes(classes: int, parts: tuple[str, ...]) -> None:
    evaluated = [made_up(part, classes) for part in parts]
    matrix, accuracies = figures.confusion(evaluated, name="x"), figures.per_class(evaluated, 0.95, name="x")
    matrix.canvas.draw()
    cells = [text.get_text() for axes in matrix.axes for text in axes.texts]
    counts = torch.cat([part.confusion.flatten() for part in evaluated])
    assert len(cells) == (int((counts > 0).sum()) if classes <= 12 else 0)
    if classes <= 12:
        assert sum(int(cell.splitlines()[1]) for cell in cells) == 500 * len(parts)
    accuracies.canvas.draw()
    for axes in accuracies.axes:
        assert len(axes.get_yticks()) == min(classes, 100)


def test_captions_have_classes_probability_and_file() -> None:
    evaluated = made_up("val", 3)
    pictures = torch.zeros(2, 4, 4, 3)
    names = [f"val/a/{row}_and_more_words_than_there_is_room.jpg" for row in range(500)]
    figure = figures.mistakes(evaluated, evaluated.mistakes[:2], pictures, names=names, name="x")
    assert figure.axes[0].get_title() == (
        "true: $class_1$…ong name\npredicted: $class_2$…ong name, 99.4 %\n495_and_more_…_is_room.jpg"
    )
