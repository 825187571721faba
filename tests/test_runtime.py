"""Keyed randomness, devices and precisions, files, downloads, provenance."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import dlhw
from dlhw.errors import UsageError
from dlhw.runtime import provenance as module
from dlhw.runtime.devices import Precision, configure_torch, pick_device
from dlhw.runtime.downloads import TIMEOUT_SECONDS, DownloadFailed, downloading
from dlhw.runtime.files import locked, printable
from dlhw.runtime.provenance import provenance
from dlhw.runtime.randomness import generator, key
from support.caches import forget

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
PLACES = st.lists(st.text(max_size=5) | st.integers(0, 100), max_size=3)
SEEDS = st.integers(0, 2**32)


@pytest.fixture
def switches() -> Iterator[None]:
    """Restore the process-wide settings of torch."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)  # imports the compiler, 6 s


# Keyed randomness


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((0, "order", 1), 7_021_862_330_116_196_507),
        ((0, "init"), 5_184_189_234_732_532_942),
        ((7, "split"), 8_614_704_755_402_029_884),
    ],
    ids=str,
)
def test_keys_never_change(place: tuple[int, str], expected: int) -> None:
    assert key(*place) == expected  # otherwise published results could not be reproduced


@given(seed=SEEDS, place=PLACES)
def test_a_key_is_a_valid_seed_for_torch(seed: int, place: list[str | int]) -> None:
    assert 0 <= key(seed, *place) < 2**63
    assert key(seed, *place) == key(seed, *place)


@given(one=st.tuples(SEEDS, PLACES), other=st.tuples(SEEDS, PLACES))
def test_different_uses_have_different_keys(
    one: tuple[int, list[str | int]], other: tuple[int, list[str | int]]
) -> None:
    assume(one != other)
    assert key(one[0], *one[1]) != key(other[0], *other[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("order", 1), ("order", "1")),
        (("a", "b"), ("a', 'b",)),
        (("order", 1, 2), ("order", 12)),
        ((), ("",)),
    ],
    ids=str,
)
def test_similar_uses_have_different_keys(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert key(0, *one) != key(0, *other)


@given(seed=SEEDS, place=PLACES)
def test_generators_are_reproducible(seed: int, place: list[str | int]) -> None:
    assert torch.equal(
        torch.rand(4, generator=generator(seed, *place)), torch.rand(4, generator=generator(seed, *place))
    )


@pytest.mark.parametrize("other", [(0, "order", 2), (1, "order", 1), (0, "dropout", 1)], ids=str)
def test_generators_of_different_uses_are_uncorrelated(other: tuple[int, str, int]) -> None:
    count = 10_000
    one = torch.randn(count, generator=generator(0, "order", 1), dtype=torch.float64)
    two = torch.randn(count, generator=generator(*other), dtype=torch.float64)
    # the correlation of n independent pairs has standard deviation 1/sqrt(n)
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 5 / math.sqrt(count)


def test_generators_and_the_global_generator_are_independent() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch.rand(5, generator=generator(0, "order"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(torch.rand(5, generator=generator(0, "order")), first)


# Devices


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_first_available_device(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected


def test_cpu_is_always_available() -> None:
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=rf"^trainer\.device={name}: not available; expected one of auto, cpu$"):
        pick_device(name)


# Precision


@pytest.mark.parametrize(("name", "device"), [("tf32", "cpu"), ("tf32", "mps"), ("fp64", "mps")])
def test_a_precision_that_the_device_lacks_is_an_error(name: str, device: str) -> None:
    with pytest.raises(UsageError, match=rf"^trainer\.precision={name}: "):
        Precision(name, torch.device(device))


@pytest.mark.parametrize(
    ("name", "expected"), [("fp32", torch.float32), ("bf16", torch.float32), ("fp64", torch.float64)]
)
def test_dtype_of_parameters(name: str, expected: torch.dtype) -> None:
    assert Precision(name, CPU).dtype == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp64", torch.float64)]
)
def test_dtype_of_products(name: str, expected: torch.dtype) -> None:
    precision = Precision(name, CPU)
    matrix = torch.ones(2, 2, dtype=precision.dtype)
    with precision.autocast():
        assert (matrix @ matrix).dtype == expected


@pytest.mark.usefixtures("switches")
def test_settle_resets_the_settings_of_an_earlier_run() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    configure_torch(CPU, Precision("fp32", CPU), deterministic=True)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        # rounding both factors to a fraction of m bits leaves a relative error of some 2^-(m+1) in a product
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


# Files


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("name", [".", "file"])
def test_a_lock_is_exclusive_and_ends_with_its_block(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with contextlib.suppress(RuntimeError), locked(path, wait=False, busy="busy"):
        with pytest.raises(UsageError, match=r"^busy$"), locked(path, wait=False, busy="busy"):
            pytest.fail("two locks on one path")
        raise RuntimeError
    with locked(path, wait=True, busy="busy"):
        pass


def test_printable_escapes_what_is_not_utf8() -> None:
    assert printable("caf\u00e9/\u732b.jpg") == "caf\u00e9/\u732b.jpg"
    escaped = printable(Path("caf\udce9.jpg"))
    assert escaped == "caf\\xe9.jpg"
    assert escaped.encode()


# Downloads


@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("no route"), TimeoutError()], ids=repr)
def test_a_failed_download_has_a_reason_and_restores_the_timeout(error: Exception) -> None:
    before = socket.getdefaulttimeout()

    def fail() -> None:
        assert socket.getdefaulttimeout() == TIMEOUT_SECONDS
        raise error

    with pytest.raises(DownloadFailed, match=r"^(no route|TimeoutError)$"), downloading():
        fail()
    assert socket.getdefaulttimeout() == before


# Provenance


def test_provenance_names_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/dlhw", "experiment=flooding", "name=my run"])
    found = json.loads(json.dumps(provenance(CPU)))
    assert found["command"] == "python -m dlhw.train experiment=flooding 'name=my run'"
    assert found["versions"] == {
        "dlhw": dlhw.__version__,
        "torch": str(torch.__version__),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert (found["device"], found["threads"]) == ("cpu", torch.get_num_threads())


def revision_now() -> str | None:
    """Return the revision, without the cache."""
    forget()
    try:
        revision: str | None = provenance(CPU)["git_revision"]
    finally:
        forget()
    return revision


def test_no_revision_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert revision_now() is None


@needs_git
def test_no_revision_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime.py"))
    assert revision_now() is None


@needs_git
def test_the_revision_of_a_changed_checkout_has_a_plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime.py"))
    (tmp_path / "runtime.py").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")  # a tag's name is not a revision
    revision = git("rev-parse", "HEAD")[:12]
    assert revision_now() == revision
    (tmp_path / "runtime.py").write_text("2\n")
    assert revision_now() == revision + "+"
