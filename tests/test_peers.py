"""The benchmark of other frameworks: what their programs share, how they are run, and the table."""

from __future__ import annotations

import gzip
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
FRAMEWORKS = {"jax", "keras", "lightning", "skorch", "fastai"}
UV_ERROR = """error: No solution found when resolving `--with` dependencies
  cause: Because x was not found in the package registry and you require x, your requirements are unsatisfiable.

hint: Packages were unavailable because the network was disabled.
"""
OLD_UV_ERROR = """  × No solution found when resolving `--with` dependencies:
  ╰─▶ Because x was not found in the package registry and you require x, your requirements are unsatisfiable.
"""


def script(name: str) -> Any:
    """Return a module of ``scripts`` or ``scripts/peers``."""
    for folder in (SCRIPTS, SCRIPTS / "peers"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)


benchmark_loop, handwritten_loops = script("benchmark_loop"), script("handwritten_loops")
peer_programs, peer = script("peer_programs"), script("peer")
PROGRAMS = [(other.program, precision) for other in peer_programs.PEERS.values() for precision in other.precisions]


class StandIn(ModuleType):
    """A module in which every name is an empty class."""

    __path__: Sequence[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"Callback": object})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import stand-ins in place of the frameworks, which are not installed."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in FRAMEWORKS else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.fixture
def run_program(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a program with stand-ins for its framework."""
    monkeypatch.setattr(sys, "meta_path", [StandIns(), *sys.meta_path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setenv("KERAS_BACKEND", "jax")

    def run(program: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        runpy.run_path(str(SCRIPTS / "peers" / program), run_name="__main__")

    return run


@pytest.mark.parametrize(("program", "precision"), PROGRAMS)
def test_programs_accept_the_measured_precisions(
    program: str, precision: str, run_program: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_program(program, f"--precision={precision}", "--model=cnn", "--epochs=0")
    assert capsys.readouterr().err.endswith(f"{program}: error: --epochs=0: must be at least 1\n")


@pytest.mark.parametrize("program", sorted({program for program, _ in PROGRAMS}))
def test_programs_explain_their_arguments(
    program: str, run_program: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_program(program, "--help")
    assert "\nTrain on MNIST with " in capsys.readouterr().out


def test_programs_find_mnist_where_the_tests_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLHW_DATA", "somewhere")
    options = peer.parse_arguments("Train.", [])
    assert (options.model, options.precision, options.epochs, options.data_dir) == ("mlp", "fp32", 1, Path("somewhere"))


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_plain_or_packed(packed: bool, tmp_path: Path) -> None:
    content = bytes(16) + bytes(range(8))
    if packed:
        (tmp_path / "images.gz").write_bytes(gzip.compress(content))
    else:
        (tmp_path / "images").write_bytes(content)
    assert peer.read(tmp_path / "images", header=16).tolist() == list(range(8))


def test_pixels_are_standardized_as_in_the_other_loops() -> None:
    expected = (np.arange(256) / 255 - handwritten_loops.MEAN) / handwritten_loops.STD
    np.testing.assert_allclose(peer.standardized(np.arange(256, dtype=np.uint8)), expected, rtol=1e-5, atol=1e-6)


def test_the_first_epoch_is_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ends = iter([100.0, 100.5, 102.5])
    monkeypatch.setattr(peer.time, "perf_counter", lambda: next(ends))
    clock = peer.Clock()
    for _ in range(3):
        clock.epoch_ended()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"seconds": 0.5}, {"seconds": 2.0}]


def test_a_program_that_does_not_learn_fails(capsys: pytest.CaptureFixture[str]) -> None:
    y = np.arange(100)
    peer.finish(np.where(y < 5, -1, y), y)
    with pytest.raises(SystemExit, match=r"^the validation error is 50\.00 %, expected at most 6 %$"):
        peer.finish(np.where(y < 50, -1, y), y)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"val_error_percent": 5.0}, {"val_error_percent": 50.0}]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param(
            UV_ERROR,
            "error: No solution found when resolving `--with` dependencies cause: Because x was not found in the "
            "package registry and you require x, your requirements are unsatisfiable.",
            id="uv",
        ),
        pytest.param(
            OLD_UV_ERROR,
            "No solution found when resolving `--with` dependencies: Because x was not found in the package registry "
            "and you require x, your requirements are unsatisfiable.",
            id="earlier uv",
        ),
        pytest.param("Traceback:\n  File\nImportError: no x\n", "ImportError: no x", id="a program"),
        pytest.param("error: " + 400 * "x", "error: " + 292 * "x" + "…", id="long"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_errors_become_one_line(errors: str, expected: str) -> None:
    assert peer_programs.reason(errors) == expected


def test_the_seconds_of_a_program_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    code = """
import sys
print("Some library says hello.")
for _ in range(int(sys.argv[1].removeprefix("--epochs="))):
    print('{"seconds": 0.25}')
print('{"val_error_percent": 2.5}')
"""
    assert peer_programs.train([sys.executable, "-c", code], 3) == [0.25, 0.25, 0.25]
    assert capsys.readouterr().err == "validation error 2.50 %\n"


def test_a_program_that_fails_is_unavailable() -> None:
    with pytest.raises(peer_programs.Unavailable, match=r"^wrong$"):
        peer_programs.train([sys.executable, "-c", "import sys; sys.exit('much\\nwrong')"], 1)
    with pytest.raises(peer_programs.Unavailable, match=r"^exit code 3$"):
        peer_programs.train([sys.executable, "-c", "import sys; sys.exit(3)"], 1)


def test_uv_provides_the_packages_for_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_programs, "find_uv", lambda: "uv")
    with_packages = ["--with", "keras", "--with", "jax"]
    assert peer_programs.python(peer_programs.PEERS["keras"], "a.py", "b") == [
        "uv", "run", "--quiet", "--no-project", "--python", sys.executable, *with_packages, "python", "a.py", "b",
    ]  # fmt: skip


def test_frameworks_that_uv_cannot_install_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def output(command: Sequence[str]) -> str:
        if "keras" in command:
            raise peer_programs.Unavailable("no keras")
        return "1.0\n"

    monkeypatch.setattr(peer_programs, "find_uv", lambda: "uv")
    monkeypatch.setattr(peer_programs, "output", output)
    loops = peer_programs.peer_loops(["jax", "keras", "skorch"], "mlp", Path("data"))
    assert list(loops) == ["JAX, fp32", "JAX, bf16", "skorch, fp32"]
    assert peer_programs.JITTED in loops
    assert capsys.readouterr().out == "jax 1.0\nKeras on JAX is left out: no keras\nskorch 1.0\n"


def test_peers_need_uv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        benchmark_loop.parse_arguments(["--device=cpu", "--peers"])
    error = "error: --peers: uv is not installed; see https://docs.astral.sh/uv\n"
    assert capsys.readouterr().err.endswith(error)
    assert benchmark_loop.parse_arguments(["--device=cpu"]).peers is None


def test_a_framework_that_fails_later_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([[1.0, 3.0], [4.0, 4.0]])

    def fail(epochs: int) -> list[float]:
        raise peer_programs.Unavailable("no memory")

    loops = {"by hand, fp32": lambda epochs: next(times), "Keras, fp32": fail}
    assert benchmark_loop.measure(loops, rounds=2, epochs=2) == {"by hand, fp32": [2.0, 4.0]}
    assert capsys.readouterr().out == "Keras, fp32 is left out: no memory\n"


def test_the_table_has_ratios_to_the_baseline_and_to_the_jitted_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"by hand, fp32": [1.0, 2.0, 3.0], "fit, fp32": [0.5, 2.0, 6.0]}
    benchmark_loop.print_table("mlp", seconds)
    assert capsys.readouterr().out.splitlines()[3:] == [
        "| loop | seconds per epoch | min–max | ratio | min–max |",
        "|---|--:|--:|--:|--:|",
        "| by hand, fp32 | 2.000 | 1.000–3.000 | 1.000 | 1.000–1.000 |",
        "| fit, fp32 | 2.000 | 0.500–6.000 | 1.000 | 0.500–2.000 |",
    ]
    benchmark_loop.print_table("mlp", {**seconds, peer_programs.JITTED: [0.5, 1.0, 1.0]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:5] == [
        "| loop | seconds per epoch | min–max | ratio | min–max | ratio to JAX | min–max |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    assert lines[6] == "| fit, fp32 | 2.000 | 0.500–6.000 | 1.000 | 0.500–2.000 | 2.000 | 1.000–6.000 |"


@pytest.mark.slow
@pytest.mark.real
def test_the_jitted_epoch_learns(capsys: pytest.CaptureFixture[str]) -> None:
    loops = peer_programs.peer_loops(["jax"], "mlp", Path(os.environ["DLHW_DATA"]))
    if not loops:
        pytest.skip(capsys.readouterr().out)
    seconds = loops[peer_programs.JITTED](2)
    assert len(seconds) == 2
    assert min(seconds) > 0
