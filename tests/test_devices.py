"""Devices and precisions: the automatic choice, unsupported combinations and the data types of results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from dlhw.errors import UsageError
from dlhw.runtime.devices import Precision, configure_torch, pick_device
from dlhw.runtime.randomness import generator
from support.processes import environment

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """Restore the global settings of torch after the test."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)  # this call takes 6 seconds, because it imports the compiler


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_device_is_the_first_available_of_cuda_mps_and_cpu(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected


def test_cpu_is_always_available() -> None:
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_unavailable_device_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=rf"^trainer\.device={name}: not available; expected one of auto, cpu$"):
        pick_device(name)


@pytest.mark.parametrize(("name", "device"), [("tf32", "cpu"), ("tf32", "mps"), ("fp64", "mps")])
def test_precision_that_the_device_does_not_support_is_an_error(name: str, device: str) -> None:
    with pytest.raises(UsageError, match=rf"^trainer\.precision={name}: "):
        Precision(name, torch.device(device))


@pytest.mark.parametrize(
    ("name", "expected"), [("fp32", torch.float32), ("bf16", torch.float32), ("fp64", torch.float64)]
)
def test_dtype_of_parameters_follows_the_precision(name: str, expected: torch.dtype) -> None:
    assert Precision(name, CPU).dtype == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp64", torch.float64)]
)
def test_dtype_of_matrix_products_follows_the_precision(name: str, expected: torch.dtype) -> None:
    precision = Precision(name, CPU)
    matrix = torch.ones(2, 2, dtype=precision.dtype)
    with precision.autocast():
        assert (matrix @ matrix).dtype == expected


@pytest.mark.usefixtures("restored_settings")
def test_configure_torch_resets_the_settings_of_an_earlier_run() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    configure_torch(CPU, Precision("fp32", CPU), deterministic=True)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("restored_settings")
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        # rounding both factors to m bits of fraction causes a relative error of about 2^-(m+1) in their product
        pytest.param("fp32", 0.0, 2**-20, id="fp32, 23 bits"),
        pytest.param("tf32", 2**-15, 2**-10, id="tf32, 10 bits"),
        pytest.param("bf16", 2**-12, 2**-7, id="bf16, 7 bits"),
    ],
)
def test_products_on_cuda_have_the_requested_precision(name: str, least: float, most: float) -> None:
    device = torch.device("cuda")
    precision = Precision(name, device)
    configure_torch(device, precision, deterministic=True)
    a, b = (torch.randn(512, 512, generator=generator(0, part)).to(device) for part in "ab")
    with precision.autocast():
        product = a @ b
    exact = a.double() @ b.double()
    assert least <= ((product.double() - exact).norm() / exact.norm()).item() < most


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch is older")
def test_settings_of_the_newer_interface_are_accepted() -> None:
    code = (
        "import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32'; from dlhw.runtime import devices\n"
        "with devices.restored(): pass"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
