"""Invalid values of options: too large, infinite, empty, and paths; too little memory."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dlhw.cli import assembly, build
from dlhw.cli.composition import conf_dir
from dlhw.data.augmentation import LONGEST_TEMPORARY_DIRECTORY
from dlhw.errors import NotEnoughMemory, UsageError
from dlhw.runtime.memory import allocating
from support.composing import compose, error_message

WITHOUT_BOUND = {"loss/multi_margin.p"}
"""Whole numbers that torch limits itself."""


def unbounded(schema: Any, name: str) -> Iterator[str]:
    """Yield the names of whole numbers without an upper bound in a JSON schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & set(schema):
            yield name
        for value in schema.values():
            yield from unbounded(value, name)
    elif isinstance(schema, list):
        for value in schema:
            yield from unbounded(value, name)


def test_all_whole_numbers_have_an_upper_bound() -> None:
    names, seen = set(), 0
    for path in sorted(Path(conf_dir()).glob("*/*.yaml")):
        group, config = path.parent.name, OmegaConf.load(path)
        if group in build.PROGRAM_ARGUMENTS and config.get("_target_"):
            seen += 1
            keys = frozenset(str(key) for key in config if key not in ("_target_", "defaults"))
            arguments = frozenset(build.PROGRAM_ARGUMENTS[group])
            model = build._options_model(build._located(config["_target_"]), keys, frozenset(), arguments)
            for name, schema in model.model_json_schema().get("properties", {}).items():
                names |= set(unbounded(schema, f"{group}/{path.stem}.{name}"))
    assert seen > 60
    assert names == WITHOUT_BOUND


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study=pass_cost", "study.outputs=1e18"], r"study.outputs=1e\+18: must be less than or equal to 100000"),
        (["study=jacobian", "study.width=1000000000"], "study.width=1000000000: must be less than or equal to 10000"),
        (["model.hidden=[1000000000]"], r"model.hidden=\[1000000000\]: must be less than or equal to 1000000"),
        (["trainer.batch_size=1e18"], r"trainer.batch_size=1e\+18: must be less than or equal to 1000000000"),
        (["optimizer.lr=nan"], "optimizer.lr=nan: must be finite"),
        (["optimizer.lr=inf"], "optimizer.lr=inf: must be finite"),
        (["trainer.epochs=-0"], "trainer.epochs=0: must be greater than 0"),
        (["study=computational_graph", "study.nodes={}"], r"study.nodes=\{\}: changes nothing, .*~study.nodes.z"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(overrides: list[str], message: str) -> None:
    text = error_message(*overrides)
    assert "\n" not in text
    assert re.search(message, text), text


@pytest.mark.parametrize("key", ["dataset.root", "dataset.cache_dir"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "must be a path"),
        (" ", "must be a path"),
        ("a" * 300, "too long; expected at most 255 bytes for each name"),
        ("a\0b", "must not contain a null character"),
        ("\udcff", "must be UTF-8 text"),
        ("~no_such_user_here/x", "this user has no home folder"),
    ],
)
def test_invalid_paths_are_one_line(key: str, value: str, message: str) -> None:
    cfg = compose("dataset=image_folder", "dataset.root=x")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UsageError, match=f"^{key}=.*: {message}") as caught:
        build.validate(cfg)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("choice", "key"), [("init=from_run", "init.run"), ("study=fool_resnet", "study.picture")])
def test_a_tilde_is_the_home_folder_in_all_paths(choice: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/someone")
    group, _, option = key.partition(".")
    cfg = compose(choice)
    OmegaConf.update(cfg, key, "~/x")
    assert build.validate(cfg)[group].options[option] == "/home/of/someone/x"


def too_large_for_numpy() -> object:
    return np.empty((2**31, 2**31), np.uint8)


def too_large_for_torch() -> object:
    return torch.empty(2**45)


def too_many_bytes_to_count() -> object:
    return torch.empty(2**40, 2**40)


def out_of_memory() -> object:
    raise MemoryError


def library_does_not_fit() -> object:
    raise ImportError("_backend_agg.so: failed to map segment from shared object")


def out_of_memory_on_cuda() -> object:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 1 GiB")


@pytest.mark.parametrize(
    ("allocate", "amount"),
    [
        (too_large_for_numpy, " for 4 EiB"),
        (too_large_for_torch, " for 128 TiB"),
        (too_many_bytes_to_count, ""),
        (out_of_memory, ""),
        (library_does_not_fit, ""),
        (out_of_memory_on_cuda, " for 2.5 GiB"),
    ],
)
def test_a_failed_allocation_is_one_line(allocate: Any, amount: str) -> None:
    message = rf"^model=mlp: not enough memory{amount}; choose smaller sizes$"
    with pytest.raises(NotEnoughMemory, match=message), allocating("model=mlp", building=True):
        allocate()


def test_other_errors_are_not_failed_allocations() -> None:
    with pytest.raises(ValueError, match=r"^a bug$"), allocating("model=mlp", building=True):
        raise ValueError("a bug")


def test_a_model_that_does_not_fit_into_memory_is_one_line() -> None:
    cfg = compose("dataset=digits", "model.hidden=[1000000,1000000,1000000]")
    with pytest.raises(UsageError, match=r"^model=mlp: not enough memory for 3.64 TiB; choose smaller sizes$"):
        assembly.make_model(cfg, shape=(1, 8, 8), outputs=10)


def test_workers_with_a_temporary_directory_that_is_too_long_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = build.build(compose("augmentation=flip", "augmentation.workers=2"), "augmentation")
    monkeypatch.setattr(tempfile, "tempdir", "/" + (LONGEST_TEMPORARY_DIRECTORY - 1) * "x")
    assert augmentation.processes(torch.device("cpu")) == 2
    monkeypatch.setattr(tempfile, "tempdir", "/" + LONGEST_TEMPORARY_DIRECTORY * "x")
    with pytest.raises(UsageError, match=r"augmentation.workers=2: .*\(TMPDIR\) has 76 bytes, too many for sockets"):
        augmentation.processes(torch.device("cpu"))
    without = build.build(compose("augmentation=flip", "augmentation.workers=0"), "augmentation")
    assert without.processes(torch.device("cpu")) == 0
