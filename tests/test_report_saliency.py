"""Saliency maps: they equal known results, and computing them does not change the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dlhw.data.tensors import Dataset
from dlhw.models.by_hand import cnn_by_hand
from dlhw.models.dense import mlp
from dlhw.views import report
from dlhw.views.report.saliency import SaliencyUnavailable, grad_cam, gradient
from support.classifiers import OPTIONS, random_pictures, small_cnn


@pytest.fixture(scope="module")
def data() -> Dataset:
    return random_pictures()


def test_grad_cam_before_mean_pooling_equals_the_class_activation_map(data: Dataset) -> None:
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


def test_autocast_changes_maps_only_by_its_precision() -> None:
    data = random_pictures().to("cpu", torch.float32)
    model, x = small_cnn(data).float().eval(), data.normalize(data.val.x)
    maps, _ = grad_cam(model, x, data.val.y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = grad_cam(model, x, data.val.y)
    assert rounded.dtype == maps.dtype
    assert 0 < float((rounded - maps).abs().max()) < 0.05 * float(maps.max())


def test_maps_do_not_depend_on_the_batch(data: Dataset) -> None:
    model, x = small_cnn(data).eval(), data.normalize(data.val.x)
    for method in (lambda *arguments: grad_cam(*arguments)[0], gradient):
        together = method(model, x, data.val.y)
        separate = torch.cat([method(model, x[i : i + 1], data.val.y[i : i + 1]) for i in range(len(x))])
        assert float((together - separate).abs().max()) < 1e-12
        assert (together.amax((1, 2)) > 0).sum() > len(x) / 2


def test_gradient_map_of_a_linear_model_equals_its_absolute_weights(data: Dataset) -> None:
    model = mlp(data.shape, 3, hidden=[], activation="ReLU", dropout=0.0, batch_norm=False).double()
    (weight,) = (parameter for parameter in model.parameters() if parameter.ndim == 2)
    maps = gradient(model, data.normalize(data.val.x), data.val.y)
    assert maps.equal(weight.detach()[data.val.y].view(-1, 3, 8, 8).abs().amax(1))


@pytest.mark.parametrize("saliency", ["grad_cam", "gradient", "none"])
@pytest.mark.parametrize("frozen", [False, True])
def test_report_does_not_change_the_model(data: Dataset, saliency: str, frozen: bool) -> None:
    model = small_cnn(data).train()
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


def dense_network(shape: tuple[int, ...]) -> nn.Module:
    return mlp(shape, 3, hidden=[5], activation="ReLU", dropout=0.0, batch_norm=False)


def network_by_hand(shape: tuple[int, ...]) -> nn.Module:
    return cnn_by_hand(shape, 3, channels=[2], kernel=3, activation="ReLU")


@pytest.mark.parametrize(
    ("make", "name"),
    [(dense_network, "Sequential"), (network_by_hand, "ByHand")],
)
def test_network_without_feature_maps_gets_gradient_maps(
    data: Dataset, make: Callable[[tuple[int, ...]], nn.Module], name: str
) -> None:
    answer = report.classifier(make(data.shape).double(), data, **OPTIONS)
    assert answer.messages[-1] == (
        "saliency: magnitude of the gradient with respect to the pixels instead of Grad-CAM, "
        f"because no layer of {name} outputs feature maps"
    )
    assert "saliency" in answer.figures


def test_network_without_gradient_gets_a_message_and_no_saliency_figure(data: Dataset) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3, dtype=x.dtype).requires_grad_() * x.detach().mean()

    with pytest.raises(SaliencyUnavailable):
        gradient(Constant(), data.normalize(data.val.x), data.val.y)
    answer = report.classifier(Constant(), data, **OPTIONS)
    assert answer.messages[-1] == "saliency: no maps, because Constant has no gradient with respect to its input"
    assert set(answer.figures) == {"confusion", "per_class", "mistakes"}
