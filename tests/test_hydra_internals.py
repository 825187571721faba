"""The private names of Hydra and OmegaConf that dlhw uses are in one module and have the expected signatures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import ResultDefault
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import grammar_parser, grammar_visitor

import dlhw
from dlhw.cli import composition, hydra_internals
from dlhw.cli.hydra_internals import Reference, references

ADVICE = (
    "This version of Hydra or OmegaConf has changed {name}, which dlhw uses: adapt src/dlhw/cli/hydra_internals.py "
    "(its docstring lists the changes in Hydra 1.4), or keep the versions that pyproject.toml allows."
)
SIGNATURES: dict[str, tuple[Callable[..., object], list[str]]] = {
    "ConfigLoaderImpl": (ConfigLoaderImpl, ["config_search_path"]),
    "ConfigLoaderImpl.load_configuration": (
        ConfigLoaderImpl.load_configuration,
        ["self", "config_name", "overrides", "run_mode", "from_shell", "validate_sweep_overrides"],
    ),
    "ConfigLoaderImpl.load_sweep_config": (
        ConfigLoaderImpl.load_sweep_config,
        ["self", "master_config", "sweep_overrides"],
    ),
    "ConfigLoaderImpl._load_single_config": (ConfigLoaderImpl._load_single_config, ["self", "default", "repo"]),
    "ConfigLoaderImpl._compose_config_from_defaults_list": (
        ConfigLoaderImpl._compose_config_from_defaults_list,
        ["self", "defaults", "repo"],
    ),
    "ConfigLoaderImpl._apply_overrides_to_config": (ConfigLoaderImpl._apply_overrides_to_config, ["overrides", "cfg"]),
    "get_overrides_dirname": (get_overrides_dirname, ["overrides", "exclude_keys", "item_sep", "kv_sep"]),
    "create_defaults_list": (
        create_defaults_list,
        ["repo", "config_name", "overrides_list", "prepend_hydra", "skip_missing"],
    ),
    "IConfigRepository.load_config": (IConfigRepository.load_config, ["self", "config_path"]),
    "IConfigRepository.group_exists": (IConfigRepository.group_exists, ["self", "config_path"]),
    "Hydra.compose_config": (
        Hydra.compose_config,
        [
            *("self", "config_name", "overrides", "run_mode"),
            *("with_log_configuration", "from_shell", "validate_sweep_overrides"),
        ],
    ),
    "Plugins.is_in_toplevel_plugins_module": (Plugins.is_in_toplevel_plugins_module, ["clazz"]),
    "Plugins.register": (Plugins.register, ["self", "clazz"]),
    "omegaconf.grammar_parser.parse": (grammar_parser.parse, ["value", "parser_rule", "lexer_mode"]),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_private_function_has_the_expected_signature(name: str) -> None:
    function, parameters = SIGNATURES[name]
    assert list(inspect.signature(function).parameters) == parameters, ADVICE.format(name=name)


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (DefaultsList, "overrides"),
        (ResultDefault, "config_path"),
        (grammar_visitor.OmegaConfGrammarParser, "ConfigKeyContext"),  # type: ignore[attr-defined]
        (grammar_visitor.OmegaConfGrammarParser, "InterpolationContext"),  # type: ignore[attr-defined]
        (grammar_visitor.OmegaConfGrammarParser, "InterpolationNodeContext"),  # type: ignore[attr-defined]
    ],
)
def test_private_class_has_the_expected_attribute(owner: type, attribute: str) -> None:
    exists = attribute in inspect.get_annotations(owner) or hasattr(owner, attribute)
    assert exists, ADVICE.format(name=f"{owner.__name__}.{attribute}")


def test_hydra_uses_the_loader_of_dlhw() -> None:
    composition.prepare()
    before = Singleton.get_state()
    try:
        hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(composition.conf_dir())))
    finally:
        Singleton.set_state(before)
    loader = hydra.config_loader
    assert isinstance(loader, composition.Loader), ADVICE.format(name="the way in which it creates its config loader")
    assert loader.choices("train", [])["model"] == "mlp", ADVICE.format(name="DefaultsList.overrides.known_choices")
    assert loader.has_group("model")
    assert not loader.has_group("model/mlp")
    file = loader.file("model/mlp")
    assert file is not None
    assert file["_target_"] == "dlhw.models.dense.mlp"
    assert loader.file("model/none") is None


def test_only_hydra_internals_uses_private_names() -> None:
    source = Path(dlhw.__file__).parent
    private = re.compile(r"hydra\._internal|omegaconf\.(_|grammar)|\._(get_node|is_none|is_missing|value|metadata)\b")
    users = [path.name for path in source.rglob("*.py") if private.search(path.read_text())]
    assert users == [Path(hydra_internals.__file__).name]


SIZE = Reference(("size",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b", ()),
        ("${b}", (Reference(("b",)),)),
        ("${a.b[c]} and ${[d].e}", (Reference(("a", "b", "c")), Reference(("d", "e")))),
        ("${sizes.${size}.epochs}", (Reference(("sizes", SIZE, "epochs")), SIZE)),
        ("${dlhw.repeat:${width},${depth}}", (Reference(("width",)), Reference(("depth",)))),
        ("${..b}${.c}", (Reference(("b",), 2), Reference(("c",), 1))),
        ("${a.${oc.env:HOME}}", (Reference(("a", None)),)),
        ("${oc.env:DLHW_DATA,data}", ()),
        (r"\${b}", ()),
    ],
)
def test_references_in_a_text(text: str, expected: tuple[Reference, ...]) -> None:
    assert references(text) == expected
