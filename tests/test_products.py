"""fp32 matrix products on a CPU are exact to fp32, repeatable, and computed by the library that suits their size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dlhw.runtime import products
from dlhw.runtime.devices import Precision
from dlhw.runtime.products import computed_by, fastest_library, is_exact_in_onednn, relative_error
from dlhw.runtime.randomness import generator
from dlhw.storage.record import Record
from dlhw.train import run
from dlhw.training import batched
from dlhw.training.loop import Training
from support.commands import summary
from support.composing import compose

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "test", *shape))


def rounded_to(bits: int, x: Tensor) -> Tensor:
    """Round to this number of bits after the leading one."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


def _noting(self: Training, predict: Callable[[Training, Tensor], Tensor], used: list[str], x: Tensor) -> Tensor:
    used.append(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
    return predict(self, x)


@pytest.fixture
def library() -> products.Library:
    """The library of large products on this machine."""
    return fastest_library([torch.empty(1, 500, 784)], 128, FP32)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("samples", "inputs", "outputs"), [(128, 784, 500), (1, 784, 500), (1000, 300, 7), (33, 65, 257)]
)
def test_products_of_a_linear_layer_and_its_gradients_are_exact_to_fp32(
    samples: int, inputs: int, outputs: int, compiled: bool, library: products.Library
) -> None:
    layer = nn.Linear(inputs, outputs, bias=False)
    x, gradient = normal(samples, inputs).requires_grad_(), normal(samples, outputs)
    forward = torch.compile(layer, dynamic=False) if compiled else layer
    with computed_by(library):
        y = forward(x)
        y.backward(gradient)
    weight = layer.weight.detach()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert relative_error(y.detach(), x.detach(), weight.T) < 1
    assert relative_error(x.grad, gradient, weight) < 1
    assert relative_error(layer.weight.grad, gradient.T, x.detach()) < 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("shape", "outputs"), [((21, 32, 784), 100), ((64, 32, 64), 32), ((2, 5, 700), 3)])
def test_products_of_an_ensemble_and_their_gradients_are_exact_to_fp32(
    shape: tuple[int, int, int], outputs: int, shared: bool, library: products.Library
) -> None:
    count, samples, inputs = shape
    forward = batched.forward(nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs, bias=False)))
    assert forward is not None
    x, weights = normal(1 if shared else count, samples, inputs), normal(count, outputs, inputs).requires_grad_()
    gradient = normal(count, samples, outputs)
    with computed_by(library):
        y = forward({"1.weight": weights}, x)
        y.backward(gradient)
    assert weights.grad is not None
    assert relative_error(y.detach(), x, weights.detach().mT) < 1
    assert relative_error(weights.grad, gradient.mT, x) < 1


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_error_of_rounded_factors_is_far_above_the_bound(name: str) -> None:
    bits = {"bf16": 7, "tf32": 10}[name]
    a, b = normal(96, 640), normal(640, 160)
    assert relative_error(rounded_to(bits, a) @ rounded_to(bits, b), a, b) > 10


def test_onednn_is_rejected_where_it_rounds_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: exact(a, b) if a.dtype == torch.float64 else exact(a.bfloat16(), b.bfloat16()).float(),
    )
    assert not is_exact_in_onednn.__wrapped__()


def test_onednn_is_rejected_where_torch_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not is_exact_in_onednn.__wrapped__()


def test_torchs_default_dtype_does_not_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert products._normal(3, 2).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_products_are_the_same_bits_in_every_call(library: products.Library) -> None:
    x, weight = normal(128, 784), normal(784, 500)
    with computed_by(library):
        first = x @ weight
        assert all(torch.equal(x @ weight, first) for _ in range(20))


@pytest.mark.parametrize(
    ("name", "shapes", "samples", "expected"),
    [
        pytest.param("fp32", [(1, 500, 784), (1, 500), (1, 10, 500), (1, 10)], 128, "oneDNN", id="C5.2"),
        pytest.param("fp32", [(1, 32, 64), (1, 32), (1, 10, 32), (1, 10)], 32, "default", id="a small network"),
        pytest.param("fp32", [(256, 32, 64), (256, 10, 32)], 32, "default", id="many small networks"),
        pytest.param("fp32", [(21, 500, 784), (21, 10, 500)], 128, "oneDNN", id="C5.3"),
        pytest.param("fp32", [(1, 64, 32, 3, 3)], 128, "default", id="convolutions only"),
        pytest.param("bf16", [(1, 500, 784)], 128, "default", id="bf16"),
        pytest.param("fp64", [(1, 500, 784)], 128, "default", id="fp64"),
    ],
)
def test_library_depends_on_precision_and_sizes(
    name: str, shapes: list[tuple[int, ...]], samples: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "is_exact_in_onednn", lambda: True)
    assert fastest_library([torch.empty(shape) for shape in shapes], samples, Precision(name, CPU)) == expected  # type: ignore[arg-type]
    monkeypatch.setattr(products, "is_exact_in_onednn", lambda: False)
    assert fastest_library([torch.empty(shape) for shape in shapes], samples, Precision(name, CPU)) == "default"  # type: ignore[arg-type]


def test_every_step_and_evaluation_of_a_run_uses_its_library_and_the_summary_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "is_exact_in_onednn", lambda: True)
    used = []
    predict = Training.predict
    monkeypatch.setattr(Training, "predict", lambda training, x: _noting(training, predict, used, x))
    cfg = compose(
        "dataset=digits", "trainer.device=cpu", "model.hidden=[700]", "trainer.batch_size=500", "trainer.epochs=1"
    )
    run(cfg, Record(tmp_path))
    assert set(used) == {"bf16"}
    assert summary(tmp_path)["matrix_products"] == "oneDNN"
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"  # type: ignore[attr-defined]


def test_setting_of_torch_is_restored_after_an_error() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ValueError, match="stop"), computed_by("oneDNN"):
        raise ValueError("stop")
    assert torch.backends.mkldnn.matmul.fp32_precision == before
