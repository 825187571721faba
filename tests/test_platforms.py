"""Windows and macOS, simulated: without the modules and functions that only POSIX has, and without float64."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dlhw as package
from dlhw.training.loop import Training
from dlhw.training.metrics import split_metrics, weight_metrics
from support.commands import RUN_FILES, SMALL, dlhw, files, summary
from support.processes import Ended, Process

SOURCE = Path(package.__file__).parent
MODULES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
POSIX = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty"}
WITHOUT_POSIX = f"""
import importlib, os, pkgutil, runpy, signal, sys, warnings

for name in {sorted(POSIX - {"resource"})}:  # psutil imports resource on Linux
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "killpg", "mkfifo", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL"):
    delattr(signal, name)
warnings.filterwarnings("ignore", message="only soft file lock is available")  # of filelock
warnings.filterwarnings("error", category=EncodingWarning, module="dlhw")
module, sys.argv = sys.argv[1], sys.argv[1:]
if module == "dlhw":
    for found in pkgutil.walk_packages(importlib.import_module(module).__path__, "dlhw."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def without_posix(*words: str, at: Path) -> Ended:
    """Run a module of dlhw, or import all of them, in a new process without the modules of POSIX."""
    arguments = ("-X", "warn_default_encoding", "-c", WITHOUT_POSIX, *words)
    return Process(*arguments, at=at, cold=True).end()


@pytest.mark.slow
def test_every_module_can_be_imported_without_posix(tmp_path: Path) -> None:
    result = without_posix("dlhw", at=tmp_path)
    assert result.code == 0, result.err


@pytest.mark.slow
def test_runs_and_sweeps_work_and_resume_without_posix(tmp_path: Path) -> None:
    small = (*SMALL, "trainer.threads=1")
    for words in (
        ("dlhw.train", *small, "trainer.epochs=2", "hydra.run.dir=run"),
        ("dlhw.train", "resume=run", "trainer.epochs=3"),
        ("dlhw.train", "-m", *small, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=sweep"),
        ("dlhw.compare", "sweep"),
    ):
        result = without_posix(*words, at=tmp_path)
        assert result.code == 0, result.err
    assert files(tmp_path / "run") == RUN_FILES | {"previous.pt"}
    assert summary(tmp_path / "run")["final"]["epoch"] == 3
    assert summary(tmp_path / "sweep")["status"] == "finished"
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_what_only_posix_has(module: str) -> None:
    imported = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert not imported & POSIX


def texts_without_encoding(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that open a text file with the encoding of the system, which is not UTF-8 on Windows."""
    for call in ast.walk(tree):
        match call:
            case ast.Call(ast.Attribute(owner, "open" | "read_text" | "write_text" as name), arguments, keywords):
                source = ast.unparse(owner)
                if source in ("self", "os", "Image", "stored") or any(word.arg == "encoding" for word in keywords):
                    continue
                modes = arguments[1:] if source == "gzip" else arguments
                mode = ast.unparse(modes[0]) if modes and name == "open" else "b" if source == "gzip" else "r"
                if "b" not in mode:
                    yield ast.unparse(call)


@pytest.mark.parametrize("module", MODULES)
def test_every_text_file_has_an_encoding(module: str) -> None:
    assert list(texts_without_encoding(MODULES[module])) == []


def test_texts_without_encoding_are_found() -> None:
    wrong = ["path.open()", "(a / b).open('a', newline='')", "path.read_text()", "gzip.open(path, 'rt')"]
    right = ["path.open('rb')", "path.open(encoding='utf-8')", "gzip.open(path)", "os.open(path, 0)"]
    assert list(texts_without_encoding(ast.parse("\n".join(wrong + right)))) == wrong


class Float64(TorchDispatchMode):
    """Lists the operations that return float64, which MPS does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            self.operations.append(str(func))
        return result


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The operations of training steps and predictions that return float64, and one entry per call."""
    found: dict[str, list[str]] = {"step": [], "predict": []}

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with Float64() as mode:
                result = method(*arguments, **options)
            found[name] += ["called", *mode.operations]
            return result

        return call

    for name in found:
        monkeypatch.setattr(Training, name, watched(name, getattr(Training, name)))
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("model.dropout=0.2", "model.batch_norm=true", "regularization=flooding", "optimizer=adam"),
        ("model.hidden=[8,8]", "regularization.l1=1e-4", "regularization.l2=1e-4", "trainer.clip_norm=1"),
        ("-m", "hydra/launcher=vectorized", "model.dropout=0.2", "regularization.l2=0,1e-4", "optimizer.lr=0.1,0.2"),
    ],
    ids=["dropout and flooding", "penalties", "vectorized"],
)
def test_training_in_fp32_uses_no_float64(
    options: tuple[str, ...], float64: dict[str, list[str]], tmp_path: Path
) -> None:
    result = dlhw(*options, *SMALL, "trainer.epochs=1", "trainer.steps_per_epoch=2", at=tmp_path)
    assert result.code == 0, result.err
    assert {name: set(calls) for name, calls in float64.items()} == {"step": {"called"}, "predict": {"called"}}


def test_training_in_fp64_is_found_by_the_same_test(float64: dict[str, list[str]], tmp_path: Path) -> None:
    options = ("trainer.precision=fp64", "trainer.epochs=1", "trainer.steps_per_epoch=2")
    assert dlhw(*SMALL, *options, at=tmp_path).code == 0
    assert "aten.addmm.default" in float64["step"]


class OnMps(torch.Tensor):
    """A tensor of a device without float64; ``cpu`` returns an ordinary tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("MPS does not support float64")
        return result


def test_metrics_are_computed_in_float64_on_the_cpu_alone() -> None:
    with pytest.raises(TypeError, match="MPS does not support float64"):
        torch.ones(2).as_subclass(OnMps).double()
    weights = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    expected = {"weight_norm": [5.0, 0.0], "near_zero_percent": [0.0, 100.0]}
    assert weight_metrics([weights.as_subclass(OnMps)]) == weight_metrics([weights]) == expected
    loss = torch.tensor([0.5], dtype=torch.float64)
    wrong = torch.tensor([1]).as_subclass(OnMps)
    assert split_metrics(loss, wrong, 4, regression=False) == {
        "loss": [0.5],
        "error_percent": [25.0],
        "accuracy": [0.75],
    }
