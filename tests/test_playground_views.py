"""The report on a network in the plane: its units, the stored snapshots and the figures of its training."""

from __future__ import annotations

import ast
import copy
import itertools
import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dlhw.data import playground as points
from dlhw.data.tensors import Dataset
from dlhw.models import dense
from dlhw.storage.record import Record
from dlhw.storage.stored import Unreadable
from dlhw.training import probes
from dlhw.views import playground as views
from dlhw.views.playground import networks, snapshots
from dlhw.views.playground import report as report_module
from dlhw.views.playground.networks import Network
from support.playground import (
    BEST,
    OPTIONS,
    content_of,
    make_data,
    make_model,
    make_record,
    mlp,
    random_points,
    report,
    vary,
)

# Networks


@pytest.mark.parametrize("activation", get_args(dense.ActivationName))
@pytest.mark.parametrize("hidden", [(), (1,), (4, 3)])
def test_units_are_the_outputs_of_the_model_s_layers(activation: str, hidden: tuple[int, ...]) -> None:
    model = make_model(hidden, activation=activation)
    network = Network.of(model)
    assert network is not None
    assert network.hidden == list(hidden)
    outputs: list[Tensor] = []
    for module in model:
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    x = random_points()
    model(x)
    expected = [outputs[1], *outputs[3::2]]  # features; then the activation after each dense layer
    units = network.units(x)
    assert len(units) == len(expected) == len(hidden) + 2
    assert all(torch.equal(one, other) for one, other in zip(units, expected, strict=True))
    few = network.units(x, most=2)
    assert all(torch.equal(one, other[:, :2]) for one, other in zip(few, units, strict=True))


def test_units_do_not_depend_on_how_many_points_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network.of(make_model((4,)))
    assert network is not None
    x = random_points()
    together = network.units(x)
    monkeypatch.setattr(networks, "_VALUES_AT_ONCE", 50)
    for one, other in zip(network.units(x), together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


def test_the_surface_has_y_upwards_and_x_to_the_right() -> None:
    model = make_model((), features=["x", "y"], output="Identity")
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 10.0]]))
        model[2].bias.zero_()
    network = Network.of(model)
    assert network is not None
    surface = network.surface(4)
    centres = torch.tensor([-4.5, -1.5, 1.5, 4.5], dtype=torch.float64)
    torch.testing.assert_close(surface, centres[None] - 10 * centres[:, None])
    assert torch.equal(networks.surface(model, 4), surface)
    assert torch.equal(networks.surface(model.float(), 4), surface.float().double())


def test_a_map_is_scaled_only_if_it_exceeds_one() -> None:
    assert networks.scaled(torch.tensor([0.1, -0.5])).tolist() == pytest.approx([0.1, -0.5])
    assert networks.scaled(torch.tensor([1.0, -4.0])).tolist() == [0.25, -1.0]


def test_an_mlp_without_batch_norm_can_be_drawn() -> None:
    for model in (mlp(), mlp(dropout=0.5)):
        network = Network.of(model.eval().double())
        assert network is not None
        assert network.features == ("x", "y")
        assert torch.equal(network.units(random_points())[-1], model(random_points()))
    for other in (mlp(batch_norm=True), nn.Sequential(nn.Linear(2, 1), nn.ELU(2.0)), nn.Linear(2, 1), nn.Sequential()):
        assert Network.of(other) is None


# Snapshots


def test_stored_weights_reproduce_the_outputs(tmp_path: Path) -> None:
    model, data = make_model(), make_data()
    record = make_record(tmp_path, model, data)
    network = Network.of(model)
    assert network is not None
    stored, messages = snapshots.read_networks(tmp_path / "probes", network, most=10)
    assert list(stored) == [0, 10, 20, 30]
    assert messages == []
    for epoch, network in stored.items():
        vary(model, seed=epoch + 1)
        torch.testing.assert_close(network.units(random_points())[-1], model(random_points()), rtol=1e-7, atol=1e-7)
    assert snapshots.Training.of(data, record).best_epoch == BEST


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2].rpartition("\n")[0] + "\n", "weights of this network are missing"),
        (lambda text: text.replace("1,2,0,0,", "1,2,0,77,", 1), "row 3 is not a weight of this network"),
        (lambda text: text.replace("1,2,0,0,", "1,2,0,1,", 1), "row 4 is not a weight of this network, or is repeated"),
        (lambda text: re.sub("(?<=1,2,0,0,).*", "x", text, count=1), "row 3 is not a weight"),
        (lambda text: text.replace("unit", "name of unit", 1), "no table of weights"),
        (lambda text: "", "no table of weights"),
        (lambda text: text + "1,2\n", "columns"),
    ],
)
def test_a_damaged_file_is_left_out_with_a_message(tmp_path: Path, damage: Any, reason: str) -> None:
    model, data = make_model(), make_data()
    record = make_record(tmp_path, model, data)
    path = tmp_path / "probes" / "epoch_0010.csv"
    path.write_text(damage(path.read_text()))
    network = Network.of(model)
    assert network is not None
    with pytest.raises(Unreadable, match=reason):
        snapshots.read_network(path, network)
    answer = views.playground(model, data, record=record, **OPTIONS)
    assert content_of(answer)["epochs"] == [0, 20, BEST, 30]
    (message,) = answer.messages
    assert "epoch_0010.csv" in message
    assert reason in message


def test_weights_that_are_not_finite_are_drawn_without_their_maps(tmp_path: Path) -> None:
    model, data = make_model(), make_data()
    record = make_record(tmp_path, model, data)
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
        model[2].weight[1] = math.nan
    record.probe("epoch_0010", probes.weights(model, data))
    answer = views.playground(model, data, record=record, **OPTIONS)
    weights = content_of(answer)["weights"][1]
    assert [i for i, weight in enumerate(weights) if weight is None] == [1, *range(9, 16)]
    for figure in answer.figures.values():
        figure.canvas.draw()


@given(st.integers(1, 300), st.integers(2, 80))
def test_epochs_are_thinned_without_losing_the_first_and_the_last(count: int, most: int) -> None:
    for choose in (snapshots.evenly, snapshots.dense_at_first):
        chosen = choose(count, most)
        assert len(chosen) == min(count, most)
        assert chosen[0] == 0
        assert chosen[-1] == count - 1
        assert all(one < other for one, other in itertools.pairwise(chosen))


def test_the_filmstrip_is_denser_at_first() -> None:
    assert snapshots.dense_at_first(51, 10) == [0, 1, 2, 3, 4, 7, 12, 19, 31, 50]


def test_fewer_epochs_of_a_large_network_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make_model(), make_data()
    make_record(tmp_path, model, data, epochs=range(0, 100, 10))
    network = Network.of(model)
    assert network is not None
    monkeypatch.setattr(snapshots, "MOST_WEIGHTS", 4 * network.size)
    assert list(snapshots.read_networks(tmp_path / "probes", network, most=150)[0]) == [0, 30, 60, 90]
    monkeypatch.setattr(snapshots, "MOST_WEIGHTS", network.size)
    answer = report(tmp_path, model, data)
    assert list(answer.figures) == ["network"]
    assert "weights" in answer.messages[0]


# The report


def test_the_report_has_all_figures(tmp_path: Path) -> None:
    answer = report(tmp_path, make_model(), make_data())
    assert list(answer.figures) == ["network", "filmstrip"]
    assert list(answer.files) == ["playground.html", "playground.gif"]
    assert answer.messages == []
    answer.write(Record(tmp_path))
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"network.png", "filmstrip.png", "playground.html", "playground.gif"}
    strip = answer.figures["filmstrip"]
    titles = [axes.get_title().splitlines()[0] for axes in strip.axes]
    assert titles == ["epoch 0", "epoch 10", "epoch 20", "epoch 30"]
    assert [axes.get_title().splitlines()[1] for axes in strip.axes][:2] == ["before training", "test loss 0.07"]


@pytest.mark.parametrize(
    ("epochs", "messages"), [((), ["no weights stored"]), ((0,), ["only one epoch"]), ((0, 30), ["only two epochs"])]
)
def test_a_message_says_how_to_get_missing_figures(tmp_path: Path, epochs: Any, messages: list[str]) -> None:
    answer = report(tmp_path, make_model(), make_data(), epochs=epochs)
    assert ("filmstrip" in answer.figures) == (len(epochs) > 1)
    assert "network" in answer.figures
    for line, part in zip(answer.messages, messages, strict=True):
        assert part in line
        assert "probe=weights trainer.probe_every_epochs=10" in line


def test_of_other_models_only_the_output_and_the_losses_are_drawn(tmp_path: Path) -> None:
    model, data = mlp(batch_norm=True), make_data()
    answer = report(tmp_path, model.double(), data, epochs=())
    assert list(answer.figures) == ["network"]
    assert "expected model=playground" in answer.messages[0]
    surface = torch.as_tensor(np.asarray(answer.figures["network"].axes[0].images[0].get_array()))
    assert torch.equal(surface, networks.surface(model, 20).clamp(-1, 1))
    assert model.training


@pytest.mark.parametrize("hidden", [(), (1,), (20, 3), (2,) * 6, (2,) * 12])
def test_networks_of_all_sizes_are_drawn(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    answer = report(tmp_path, make_model(hidden, activation="ReLU"), make_data())
    figure = answer.figures["network"]
    figure.canvas.draw()
    canvas = figure.axes[-1]
    drawn = [7, *(min(16, width) for width in (hidden if len(hidden) <= 8 else hidden[:8]))]
    assert len(canvas.images) == sum(drawn)
    joined = list(itertools.pairwise(drawn)) if len(hidden) <= 8 else [(7, 2), *[(2, 2)] * 6]
    (lines,) = canvas.collections
    assert len(lines.get_paths()) == sum(one * other for one, other in joined) + drawn[-1]
    texts = " ".join(text.get_text().replace("\n", " ") for text in canvas.texts)
    assert ("+ 4 more" in texts) == (20 in hidden)
    assert ("4 layers in the middle are not drawn" in texts) == (len(hidden) == 12)


def test_lines_show_the_magnitudes_and_signs_of_the_weights(tmp_path: Path) -> None:
    model = make_model((), features=["x", "y", "xy"])
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -4.0, 0.0]]))
    (lines,) = report(tmp_path, model, make_data()).figures["network"].axes[-1].collections
    thin, middle, wide = lines.get_linewidths()
    assert middle - thin == pytest.approx((wide - thin) / 4)
    colors = [[round(255 * float(part)) for part in color[:3]] for color in lines.get_edgecolors()]
    assert colors == [pytest.approx(rgb, abs=1) for rgb in ((0xE8, 0xEA, 0xEB), (0x08, 0x77, 0xBD), (0xF5, 0x93, 0x22))]


@pytest.mark.parametrize("kind", ["xor", "reg_gauss", "reg_plane"])
def test_points_have_the_colours_of_their_targets(tmp_path: Path, kind: points.Kind) -> None:
    data = make_data(kind)
    answer = report(tmp_path, make_model(output="Identity"), data)
    training, test = (part["values"] for part in content_of(answer)["points"])
    assert data.test is not None
    for values, part in ((training, data.train), (test, data.test)):
        torch.testing.assert_close(
            torch.tensor(values).double(), torch.cat([part.x, part.y[:, None]], 1), rtol=1e-3, atol=0
        )
    discs, others, centres = answer.figures["network"].axes[0].collections
    assert len(discs.get_offsets()) == len(data.train)
    assert len(others.get_offsets()) == len(centres.get_offsets()) == len(data.test)


def test_many_points_are_thinned_and_the_legend_says_so(tmp_path: Path) -> None:
    answer = report(tmp_path, make_model(), make_data(count=4000))
    labels = [part["label"] for part in content_of(answer)["points"]]
    assert labels == ["training (1,000 of 2,000)", "test points"]


def test_losses_that_are_zero_or_missing_are_drawn(tmp_path: Path) -> None:
    model, data = make_model(), make_data()
    record = make_record(tmp_path, model, data)
    for row in record.rows[10:]:
        row |= {"train_loss": 0.0, "val_loss": math.nan, "test_loss": 1e300}
    for figure in views.playground(model, data, record=record, **OPTIONS).figures.values():
        figure.canvas.draw()
    record.rows = []
    answer = views.playground(model, data, record=record, **OPTIONS)
    assert content_of(answer)["curves"]["epochs"] == []
    for figure in answer.figures.values():
        figure.canvas.draw()


def assert_output_is_drawn(path: Path, model: nn.Module, data: Dataset) -> None:
    """Compare the picture of the output with the outputs of the model; those of dense networks are float64."""
    (picture,) = report(path, model, data).figures["network"].axes[0].images
    drawn = torch.from_numpy(picture.get_array().filled(math.nan))
    exact = model if Network.of(model) is None else copy.deepcopy(model).double()
    torch.testing.assert_close(drawn, networks.surface(exact, len(drawn)).clamp(-1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_in_other_precisions_are_drawn(tmp_path: Path, dtype: torch.dtype) -> None:
    for model in (make_model(), mlp(batch_norm=True).eval()):
        assert_output_is_drawn(tmp_path, model.to(dtype), make_data())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_networks_on_a_gpu_are_drawn(tmp_path: Path) -> None:
    data = make_data().to(torch.device("cuda"), torch.float32)
    for model in (make_model(), mlp(batch_norm=True).eval()):
        assert_output_is_drawn(tmp_path, model.float().cuda(), data)


def test_importing_the_package_does_not_import_matplotlib() -> None:
    drawing = {"matplotlib", "plots", "panels", "figures", "animation", "PIL"}
    for module in (views, report_module, networks, snapshots):
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = ast.unparse(node).replace(",", " ").replace(".", " ").split()
                assert drawing.isdisjoint(names), f"{module.__name__}: {ast.unparse(node)}"
