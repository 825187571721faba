"""The one-line messages about mistakes in config files that a person writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import hydra.version
import pytest
import yaml
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlhw import train
from dlhw.cli import composition
from dlhw.cli.build import choice
from dlhw.cli.config_files import read_text
from dlhw.cli.origins import option
from dlhw.errors import UsageError
from support.composing import compose, compose_with_hydra, error_message
from support.config_files import CONF, option_names

HEADER = "# @package _global_\n"


def loader(folder: Path) -> composition.Loader:
    """Return the loader of a command line with ``--config-dir FOLDER``."""
    composition.prepare()
    hydra.version.setbase("1.3")
    search_path = create_config_search_path(str(CONF))
    search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return composition.Loader(search_path)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def compose_own(folder: Path, *overrides: str) -> DictConfig:
    return loader(folder).load_configuration("train", list(overrides), RunMode.RUN)


def message(folder: Path, *overrides: str) -> str:
    """Return the message of the error that a command line with the config files in ``folder`` causes."""
    with pytest.raises(UsageError) as error:
        train.check(compose_own(folder, *overrides), overrides)
    return str(error.value).replace(str(folder), "FOLDER")


ALIASES = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
FORM = "defaults: must be a list of - NAME and - override /GROUP: OPTION"
MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "tab": ("trainer:\n\tepochs: 1\n", ":3:1: contains a tab; indent with spaces"),
    "colon": (
        "name: a: b\n",
        ":2:8: unexpected colon; put a value with a colon in quotes, and indent keys of the same level equally",
    ),
    "missing space": (
        "trainer:\n  epochs:1\n  batch_size: 3\n",
        ":4:13: unexpected colon; line 3 has no space after its first colon",
    ),
    "brace": ("trainer: {epochs: 1\n", ":2:10: { has no }, or a comma between two values is missing"),
    "bracket": ("curves: [a, b\nname: x\n", ":2:9: [ has no ], or a comma between two values is missing"),
    "quote": ('name: "x\ntrainer:\n', ":2:7: the quote that begins in this place is not closed"),
    "missing colon": (
        "name: x\nseed\ndata_dir: y\n",
        ":3:1: expected KEY: VALUE, with a colon and a space",
    ),
    "indentation": (
        "trainer:\n    epochs: 1\n  batch_size: 3\n",
        ":4:3: the indentation differs from that of the lines above; indent keys of the same level equally",
    ),
    "percent": ("name: %x\n", ":2:7: a value with this first character must be in quotes"),
    "text after a quote": (
        "name: 'a' b\n",
        ":2:11: invalid YAML (expected <block end>, but found '<scalar>'); check the indentation and the quotes",
    ),
    "byte order mark": (
        f"\ufeff{HEADER}name: x\n".encode(),
        ": begins with a byte order mark; save the file as UTF-8 without it",
    ),
    "dot in a key": (
        "trainer.epochs: 1\n",
        ":2: trainer.epochs: a key must not have a dot; write trainer: {epochs: 1}",
    ),
    "misspelt defaults": ("default:\n  - mnist_mlp\n", ":2: default: unknown key; did you mean defaults?"),
    "target": (
        "_target_: dlhw.models.dense.mlp\n",
        ": the first line must not be # @package _global_, which is only for experiments; remove it",
    ),
    "misspelt reference": (
        "trainer:\n  epochs: ${sed}\n",
        ":3: trainer.epochs: refers to sed, which the config does not have; did you mean ${seed}?",
    ),
    "unclosed reference": (
        "trainer:\n  epochs: ${seed\n",
        ":3: ${seed: invalid interpolation; expected ${KEY}, or \\${...} for text",
    ),
    "keys of a group are not indented": (
        "trainer:\nepochs: 1\n",
        ":2: trainer: must be a mapping of options; indent them below it",
    ),
    "options are a list": (
        "trainer:\n  - epochs: 1\n",
        ":2: trainer: must be a mapping of options; indent them below it",
    ),
    "option without a colon": (
        "trainer:\n  epochs 1\n",
        ":2: trainer: must be a mapping of options; write epochs: 1 with a colon and a space",
    ),
    "option without a space": (
        "trainer:\n  epochs:1\n",
        ":2: trainer: must be a mapping of options; write epochs: 1 with a colon and a space",
    ),
    "number instead of options": ("trainer: 3\n", ":2: trainer: must be a mapping of options"),
    "group of Hydra": (
        "hydra:\n  swepper: {}\n",
        ":3: hydra.swepper: unknown key (did you mean sweeper?); expected one of 17 names",
    ),
    "tag": ("key: !!timestamp x\n", ": a value is invalid for its YAML tag, such as !!timestamp or !!bool"),
    "bool": ("key: !!bool x\n", ": a value is invalid for its YAML tag, such as !!timestamp or !!bool"),
    "duplicate key": ("name: a\nname: b\n", ":3:1: duplicate key name; remove one of the two"),
    "null character": ("name: a\0b\n", r": contains the character '\x00', which YAML does not allow"),
    "Latin-1": (HEADER.encode() + b"name: \xe9\n", ":2: is not UTF-8 text; save the file with this encoding"),
    "aliases": (
        f"a0: &a0 [1]\n{ALIASES}",
        ": has more than 100,000 values, with the values of its aliases",
    ),
    "nested": (f"a: {'[' * 3000}{']' * 3000}\n", ": is nested too deeply or contains itself"),
    "list": ("- 1\n", ": contains a list; expected keys and values, such as name: mine"),
    "number": ("3\n", ": contains a single value; expected keys and values, such as name: mine"),
    "empty": ("", ": is empty; expected keys and values, such as name: mine"),
    "number as key": ("3: 4\n", ":2: 3: a key must be text"),
    "itself": ("defaults: [mine]\n", ": includes itself (experiment/mine -> experiment/mine)"),
    "no package": (b"name: x\n", ": the first line must be # @package _global_"),
    "package below a comment": (b"# x\n# @package _global_\nname: x\n", ": the first line must be # @package _global_"),
    "defaults is a mapping": ("defaults:\n  override /model: cnn\n", f":3: {FORM}"),
    "defaults is empty": ("defaults:\n", f":2: {FORM}"),
    "two groups": ("defaults:\n  - override /model: cnn\n    override /init: he\n", f":3: {FORM}"),
    "number as option": ("defaults:\n  - override /model: 3\n", f":3: {FORM}"),
    "no slash": (
        "defaults: [override model: cnn]\n",
        ": - override model: cnn: unknown group experiment/model; did you mean - override /model: cnn?",
    ),
    "no override": (
        "defaults: [/model: cnn]\n",
        ": - /model: cnn: this group has a default option; write - override /model: cnn",
    ),
    "misspelt group": (
        "defaults: [override /modle: cnn]\n",
        ": - override /modle: cnn: unknown group modle; did you mean - override /model: cnn?",
    ),
    "unknown option": (
        "defaults: [override /model: resnet99]\n",
        ": - override /model: resnet99: unknown model (did you mean resnet18 or resnet34?); --help lists all 15",
    ),
    "unknown experiment": (
        "defaults: [mnist_mpl]\n",
        ": - mnist_mpl: unknown experiment (did you mean mnist_mlp?); --help lists all 54",
    ),
    "order": (
        "defaults: [override /model: cnn, mnist_mlp]\n",
        ": - mnist_mlp: must be above the overrides in defaults",
    ),
    "twice itself": ("defaults: [_self_, _self_]\n", ": - _self_: appears twice in defaults; remove one of the two"),
    "option as value": (
        "model: cnn\n",
        ":2: model: must be a mapping of options; write - override /model: cnn in its defaults",
    ),
    "no options": ("model:\n", ":2: model: must be a mapping of options; indent them below it"),
    "unknown key": (
        "epochs: 1\n",
        ":2: epochs: unused key; no value in this config reads it; did you mean trainer.epochs?",
    ),
    "unknown key of a group": (
        "model:\n  hiden: [3]\n",
        ":3: model.hiden: unknown option of model=mlp (did you mean hidden?); "
        "expected one of hidden, activation, dropout, batch_norm",
    ),
    "invalid value": ("trainer:\n  epochs: two\n", ":3: trainer.epochs=two: must be a whole number"),
    "invalid alias": (
        "b: -1\nregularization:\n  flood: ${b}\n",
        ":2: b=-1 (regularization.flood): must be greater than or equal to 0",
    ),
    "unknown reference": (
        "trainer:\n  epochs: ${nope}\n",
        ":3: trainer.epochs: refers to nope, which the config does not have",
    ),
    "hydra": ("hydra:\n  mode: MULTI\n", ": Invalid value 'MULTI', expected one of [RUN, MULTIRUN]"),
}


@pytest.mark.parametrize(("content", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_an_experiment_has_one_line_with_the_file(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    text = f"{HEADER}{content}" if isinstance(content, str) and content else content
    write(tmp_path / "experiment" / "mine.yaml", text)
    assert message(tmp_path, "experiment=mine") == f"FOLDER/experiment/mine.yaml{expected}"


@pytest.mark.parametrize(
    ("files", "overrides", "expected"),
    [
        (
            {"experiment/one": f"{HEADER}defaults: [two]\n", "experiment/two": f"{HEADER}defaults: [one]\n"},
            ("experiment=one",),
            "FOLDER/experiment/one.yaml: includes itself (experiment/one -> experiment/two -> experiment/one)",
        ),
        (
            {"model/mine": "defaults: [mlp]\nhidden: x\n"},
            ("model=mine",),
            "FOLDER/model/mine.yaml:2: model.hidden=x: must be a list",
        ),
        (
            {"experiment/mine": f"{HEADER}trainer:\n  epochs: 3\n"},
            ("experiment=mine", "trainer.epochs=0"),
            "trainer.epochs=0: must be greater than 0",
        ),
        (
            {"model/mine": "hidden: [3]\n"},
            ("model=mine",),
            "FOLDER/model/mine.yaml: model._target_: missing; expected the path of a class or function, "
            "_target_: MODULE.NAME",
        ),
        (
            {"model/mine": "_traget_: dlhw.models.dense.mlp\n"},
            ("model=mine",),
            "FOLDER/model/mine.yaml: model._target_: missing; expected the path of a class or function, "
            "_target_: MODULE.NAME instead of _traget_",
        ),
        (
            {"model/mine": "_target_: dlhw.models.dense.mpl\n"},
            ("model=mine",),
            "FOLDER/model/mine.yaml:1: model._target_=dlhw.models.dense.mpl: cannot be used "
            "(dlhw.models.dense has no mpl (did you mean mlp?); expected one of mlp)",
        ),
        (
            {"model/mine": "_target_: dlhw.models.dense.mlp\nhiden: [3]\nactivation: ReLU\nbatch_norm: false\n"},
            ("model=mine",),
            "FOLDER/model/mine.yaml: model.dropout: missing; model=mine needs it\n"
            "FOLDER/model/mine.yaml:2: model.hiden: unknown option of model=mine (did you mean hidden?); "
            "expected one of hidden, activation, dropout, batch_norm",
        ),
        (
            {"model/mlp": "_target_: dlhw.models.dense.mlp\n"},
            (),
            "FOLDER/model/mlp.yaml: has the name of the shipped file model/mlp, which is used instead; rename it",
        ),
    ],
    ids=[
        *("files that include each other", "value of a file", "value of the command line", "no target"),
        *("misspelt _target_", "misspelt target", "misspelt option", "name of a shipped file"),
    ],
)
def test_message_names_the_file_of_the_mistake(
    tmp_path: Path, files: dict[str, str], overrides: tuple[str, ...], expected: str
) -> None:
    for name, content in files.items():
        write(tmp_path / f"{name}.yaml", content)
    assert message(tmp_path, *overrides) == expected


@pytest.mark.parametrize(
    ("file", "override", "remedy"),
    [
        ("model/mine.yml", "model=mine", "rename FOLDER/model/mine.yml to FOLDER/model/mine.yaml"),
        ("experiment/mine.yml", "experiment=mine", "rename FOLDER/experiment/mine.yml to FOLDER/experiment/mine.yaml"),
        ("model/mine", "model=mine", "rename FOLDER/model/mine to FOLDER/model/mine.yaml"),
        ("model/mine.yaml.txt", "model=mine", "rename FOLDER/model/mine.yaml.txt to FOLDER/model/mine.yaml"),
        ("models/mine.yaml", "model=mine", "move FOLDER/models/mine.yaml to FOLDER/model/mine.yaml"),
        ("mine.yaml", "experiment=mine", "move FOLDER/mine.yaml to FOLDER/experiment/mine.yaml"),
        ("conf/model/mine.yaml", "model=mine", "move FOLDER/conf/model/mine.yaml to FOLDER/model/mine.yaml"),
        (
            "experiment/a/mine.yaml",
            "experiment=mine",
            "move FOLDER/experiment/a/mine.yaml to FOLDER/experiment/mine.yaml",
        ),
        ("model/mine.yaml", "model=FOLDER/model/mine.yaml", "did you mean model=mine?"),
        ("model/other.yaml", "model=x", "--help lists all 16"),
        ("model/other.yaml", "model=mlpp", "--help lists all 16"),
    ],
)
def test_file_that_hydra_does_not_find_is_named(tmp_path: Path, file: str, override: str, remedy: str) -> None:
    write(tmp_path / file, "name: x\n")
    line = message(tmp_path, override.replace("FOLDER", str(tmp_path)))
    assert line.startswith(f"{override}: unknown {override.partition('=')[0]}")
    assert line.endswith(f"; {remedy}")


def test_file_of_a_group_with_another_suffix_is_named_in_the_experiment_that_uses_it(tmp_path: Path) -> None:
    """The experiment has the same name; it is not a misplaced model."""
    write(tmp_path / "experiment" / "mine.yaml", "# @package _global_\ndefaults: [override /model: mine]\nname: x\n")
    write(tmp_path / "model" / "mine.yml", "_target_: x.y\n")
    assert message(tmp_path, "experiment=mine") == (
        "FOLDER/experiment/mine.yaml: - override /model: mine: unknown model; rename FOLDER/model/mine.yml to "
        "FOLDER/model/mine.yaml"
    )


def test_folder_of_a_group_is_not_a_config_dir(tmp_path: Path) -> None:
    write(tmp_path / "model" / "mine.yaml", "name: x\n")
    assert message(tmp_path / "model", "model=mine").replace(str(tmp_path), "PARENT") == (
        "model=mine: unknown model; write --config-dir PARENT, the folder that contains model/"
    )


def test_file_in_the_working_directory_needs_config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own" / "experiment" / "mine.yaml", f"{HEADER}name: x\n")
    monkeypatch.chdir(tmp_path)
    expected = "experiment=mine: unknown experiment; add --config-dir own, which has experiment/mine.yaml"
    assert error_message("experiment=mine") == expected


@pytest.mark.parametrize("content", ["\tx", "- 1", "3", "", "name: a\0b", b"name: \xe9", "name: a: b"])
def test_broken_file_does_not_change_the_messages_about_others(tmp_path: Path, content: str | bytes) -> None:
    write(tmp_path / "experiment" / "mine.yaml", f"{HEADER}epochs: 1\n")
    write(tmp_path / "experiment" / "syntax.yaml", content)
    write(tmp_path / "model" / "syntax.yaml", content)
    assert message(tmp_path, "experiment=mine").endswith(
        ":2: epochs: unused key; no value in this config reads it; did you mean trainer.epochs?"
    )
    assert message(tmp_path, "lrr=1") == "lrr: unknown key; did you mean optimizer.lr?"


def test_error_in_a_shipped_file_is_not_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.yaml", "name: a: b\n")
    monkeypatch.setattr(composition, "conf_dir", lambda: tmp_path)
    with pytest.raises(yaml.MarkedYAMLError):
        composition.Loader(create_config_search_path(str(tmp_path))).load_configuration("train", [], RunMode.RUN)


SHARED_TARGETS = ("augmentation", "model", "optimizer", "regularization", "scheduler")
"""The groups with several options that have the same target."""


def test_option_of_a_config_without_choices_is_that_with_its_values() -> None:
    names = [option_names(group) for group in SHARED_TARGETS]
    for options in itertools.zip_longest(*names):
        chosen = {group: name for group, name in zip(SHARED_TARGETS, options, strict=True) if name}
        cfg = compose(*(f"{group}={name}" for group, name in chosen.items()))
        assert {group: option(cfg, group, CONF) for group in chosen} == chosen


@pytest.mark.parametrize(("composed", "expected"), [(compose_with_hydra, "picture_cnn"), (compose, "picture_cnn_bn")])
def test_option_is_the_chosen_one_or_else_that_with_its_values(
    composed: Callable[..., DictConfig], expected: str
) -> None:
    overrides = ("model=picture_cnn", "model.batch_norm=true", "model.dropout=0.5")
    assert choice(composed(*overrides), "model") == expected


def test_option_of_a_target_without_a_file_is_the_name_of_the_target() -> None:
    assert choice(OmegaConf.create({"model": {"_target_": "mycode.Net"}}), "model") == "Net"


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read \\(Is a directory\\)"):
        read_text(tmp_path)
