"""Run the programs in ``peers`` with uv, which installs their frameworks outside of this project's environment."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dlhw.runtime.threads import SPINNING

PROGRAMS = Path(__file__).with_name("peers")
TORCH = f"torch=={version('torch').partition('+')[0]}"  # this environment's version, which uv has in its cache


class Unavailable(Exception):
    """A program cannot be measured. The message says why in one line."""


@dataclass(frozen=True)
class Peer:
    """A framework, its program in ``peers``, the packages that uv installs, and the precisions to measure."""

    title: str
    program: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)


PEERS = {
    "jax": Peer("JAX", "jax_loop.py", ("jax",), ("fp32", "bf16")),
    "keras": Peer("Keras on JAX", "keras_loop.py", ("keras", "jax")),
    "lightning": Peer("Lightning", "lightning_loop.py", ("lightning", TORCH), ("fp32", "bf16")),
    "skorch": Peer("skorch", "skorch_loop.py", ("skorch", TORCH)),
    "fastai": Peer("fastai", "fastai_loop.py", ("fastai", TORCH)),
}
JITTED = "JAX, fp32"


def peer_loops(names: Sequence[str], model: str, data_dir: Path) -> dict[str, Callable[[int], list[float]]]:
    """Return the loops of these peers by their names in the table. Print their versions and which ones are left out.

    A loop starts a process, which trains a warm-up epoch and then n epochs, and returns the seconds of these n.
    """
    loops: dict[str, Callable[[int], list[float]]] = {}
    for peer in (PEERS[name] for name in names):
        try:
            code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
            print(peer.packages[0], output(python(peer, "-c", code, peer.packages[0])).strip(), flush=True)
        except Unavailable as error:
            print(f"{peer.title} is left out: {error}", flush=True)
            continue
        for precision in peer.precisions:
            options = [f"--model={model}", f"--precision={precision}", f"--data-dir={data_dir}"]
            command = python(peer, str(PROGRAMS / peer.program), *options)
            loops[f"{peer.title}, {precision}"] = functools.partial(train, command)
    return loops


def train(command: Sequence[str], epochs: int) -> list[float]:
    """Run a program and return the seconds of its measured epochs."""
    lines = [json.loads(line) for line in output([*command, f"--epochs={epochs}"]).splitlines() if line[:1] == "{"]
    *measured, last = lines
    print(f"validation error {last['val_error_percent']:.2f} %", file=sys.stderr)
    return [line["seconds"] for line in measured]


def find_uv() -> str:
    uv = shutil.which("uv")
    if uv is None:
        raise Unavailable("uv is not installed; see https://docs.astral.sh/uv")
    return uv


def python(peer: Peer, *arguments: str) -> list[str]:
    """Return the command that runs Python with the packages of ``peer``."""
    packages = [part for package in peer.packages for part in ("--with", package)]
    return [find_uv(), "run", "--quiet", "--no-project", "--python", sys.executable, *packages, "python", *arguments]


def output(command: Sequence[str]) -> str:
    """Return what a command prints that is run without dlhw's variables of threads. Raise Unavailable if it fails."""
    env = {name: value for name, value in os.environ.items() if (name, value) not in SPINNING.items()}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if ended.returncode:
        raise Unavailable(reason(ended.stderr) or f"exit code {ended.returncode}")
    return ended.stdout


def reason(errors: str) -> str:
    """Return the error of uv in one line, without its hints, or else the last line, which is a program's error."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    start = next((index for index, line in enumerate(lines) if line.startswith(("error: ", "× "))), None)
    if start is None:
        return lines[-1] if lines else ""
    message = " ".join(line.lstrip("×╰─▶ ") for line in lines[start:]).partition(" hint: ")[0]
    return message if len(message) <= 300 else f"{message[:299]}…"
