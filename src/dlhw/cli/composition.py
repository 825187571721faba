"""Composing configs: Hydra's composition with our rules, and our words for mistakes.

The rules on top of Hydra's: an experiment's values for a group are dropped when the command line, or an
experiment built on it, chooses another option of that group; a top-level key must be read by something; what
chooses an entry of another key, as ``size`` does of ``sizes``, names one; ``resume=DIR`` brings back the config of
the run, or the overrides of the sweep, in DIR. This module does not import torch, so that help and completion answer
at once.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli import messages
from dlhw.errors import UsageError

CONFIG_NAME = "train"
RESUME_MAY_CHANGE = ("resume", "data_dir", "trainer.epochs")
PATHS = ("resume", "data_dir", "output_dir", "hydra.run.dir", "hydra.sweep.dir")
SWEPT_PATHS = ("start", "init.run")
"""Keys whose value is a directory, or several of them in a sweep; commas may also belong to a name."""
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, AssertionError)  # Hydra raises them all
PLUGINS = ("dlhw.sweeps.grid.Grid", "dlhw.sweeps.vectorized.Vectorized")
"""Sweepers and launchers of ours by class, which Hydra would only take from a package named hydra_plugins."""


def conf_dir() -> Path:
    """The shipped ``conf/``: inside the installed package, or beside ``src/`` in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def prepare() -> None:
    """Teach Hydra our rules, resolvers and plugins; done in every process before anything is composed."""
    hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]  # where loaders are made
    Plugins.instance().is_in_toplevel_plugins_module = _admit  # type: ignore[method-assign,assignment]
    OmegaConf.register_new_resolver("dlhw.experiments", _list_experiments, replace=True)
    OmegaConf.register_new_resolver("dlhw.repeat", _repeat, replace=True)


def _admit(name: str) -> bool:
    """Whether Hydra may use the plugin of this class, which it asks just before doing so; ours is imported now."""
    if name in PLUGINS:
        Plugins.instance().register(get_class(name))
        return True
    return Plugins.is_in_toplevel_plugins_module(name)


def stop(error: UsageError) -> NoReturn:
    """End the program with the error's message alone; HYDRA_FULL_ERROR=1 shows where it came from."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(error, file=sys.stderr)
    sys.exit(1)


class Loader(ConfigLoaderImpl):
    """Hydra's composition with the rules of this module. Raises UsageError, or ends the program with it."""

    ends_program = False
    composed: ClassVar[dict[Any, tuple[DictConfig, tuple[tuple[str, str], ...]]]] = {}
    """Configs of jobs and their choices, by all that they depend on but the values of plain options."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._choices: dict[str, str | None] = {}
        self._experiments = ""  # the text of the experiment files that were composed

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """The config for these overrides. Raises UsageError with one line for what is wrong with them."""
        try:
            return self._load(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except UsageError as error:
            if self.ends_program:
                stop(error)
            raise

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """The config of one job, equal to Hydra's, in milliseconds when jobs like it came before.

        Jobs that differ in the values of plain options alone are composed once, then copied and updated. Raises
        UsageError, also where mistakes on the command line end the program.
        """
        prepare()  # this may be a worker's process
        lines = [quoted(line) for line in [*master_config.hydra.overrides.hydra, *sweep_overrides]]
        config_name = master_config.hydra.job.config_name
        try:
            overrides = [parsed(line) for line in lines]
        except HydraException:
            overrides = []  # composing says what is wrong
        sources = tuple((source.provider, source.path) for source in self.config_search_path.get_path())
        key = (config_name, os.getcwd(), sources, self.structure(overrides))
        cfg = self._like(*self.composed[key], overrides) if overrides and key in self.composed else None
        if cfg is None:
            cfg = self._load(config_name, lines, RunMode.RUN)
            self.composed[key] = copy.deepcopy(cfg), _choosers(_text(cfg))
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def structure(self, overrides: Sequence[Override]) -> tuple[str, ...]:
        """The overrides without the values of plain options: of two jobs alike in it, all keys are the same."""
        return tuple(str(line.key_or_group if self._is_plain(line) else line.input_line) for line in overrides)

    def _like(
        self, sibling: DictConfig, choosers: Sequence[tuple[str, str]], lines: list[Override]
    ) -> DictConfig | None:
        """The config of a job with the structure of another's; None where composing is to say what is wrong."""
        cfg = copy.deepcopy(sibling)
        try:
            self._apply_overrides_to_config([line for line in lines if self._is_plain(line)], cfg)
            _check_choices(cfg, choosers)
        except COMPOSITION_ERRORS:
            return None
        own = [line for line in lines if not line.is_hydra_override()]
        cfg.hydra.overrides.hydra = [line.input_line for line in lines if line.is_hydra_override()]
        cfg.hydra.overrides.task = [line.input_line for line in own]
        cfg.hydra.job.override_dirname = get_overrides_dirname(own, **cfg.hydra.job.config.override_dirname)
        return cfg

    def left_over(self, master_config: DictConfig, swept: Sequence[str], given: Sequence[Override]) -> frozenset[str]:
        """Those keys that an experiment sweeps and no part of a job's config reads with these overrides.

        That is an option of a group that is given another, or a top-level key whose readers are gone.
        """
        lines = [*master_config.hydra.overrides.hydra, *(str(line.input_line) for line in given)]
        try:
            cfg = self._load(master_config.hydra.job.config_name, lines, RunMode.RUN)
        except UsageError:
            return frozenset()  # composing the job says what is wrong
        replaced = {line.key_or_group for line in given}
        return frozenset(
            name
            for name in swept
            if OmegaConf.select(cfg, name, default=cfg, throw_on_missing=False) is cfg
            and (name.partition(".")[0] in replaced or _refers(self._experiments, name.partition(".")[0]))
        )

    def _is_plain(self, override: Override) -> bool:
        """Whether the override gives a key that is there another number, text or list, and does nothing else."""
        return (
            override.type == OverrideType.CHANGE
            and override.value_type == ValueType.ELEMENT
            and override.package is None
            and override.key_or_group != "resume"
            and not isinstance(override.value(), dict)
            and not re.search(r"\$\{|\?\?\?", override.input_line or "")
            and (not override.is_hydra_override() or override.key_or_group in ("hydra.sweep.dir", "hydra.sweep.subdir"))
            and not self.repository.group_exists(override.key_or_group)
        )

    def _load(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        def compose(lines: list[str]) -> DictConfig:
            return super(Loader, self).load_configuration(
                config_name, lines, run_mode, from_shell, validate_sweep_overrides
            )

        overrides = [quoted(line) for line in overrides]
        self._experiments = ""
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
            resume = next((line for line in parsed if line.key_or_group == "resume"), None)
            if resume is not None and resume.value() is not None:
                if resume.is_sweep_override():
                    raise UsageError(f"{resume.input_line}: one run is resumed at a time")
                if not (Path(str(resume.value())).expanduser() / "multirun.yaml").is_file():
                    self._choices = self._choices_given(overrides)
                    return self._resumed(str(resume.value()), parsed, compose)
                overrides = _overrides_of_sweep(Path(str(resume.value())).expanduser().absolute(), parsed)
                parsed = OverridesParser.create().parse_overrides(overrides)
            self._choices = self._choices_given(overrides)
            cfg = compose(overrides)
            text = _text(cfg)
            self._drop_unread(cfg, text, parsed)
            _check_choices(cfg, _choosers(text))
        except UsageError:
            raise
        except COMPOSITION_ERRORS as error:
            try:
                message = messages.explain(overrides, self, compose, error)
            except COMPOSITION_ERRORS:
                message = messages.first_line(error)
            raise UsageError(message) from error
        return cfg

    def _compose_config_from_defaults_list(self, *args: Any, **kwargs: Any) -> DictConfig:
        """All files as one; options that are mappings take keys that no file has (``trainer.rates={fc.*: 0.1}``)."""
        cfg: DictConfig = super()._compose_config_from_defaults_list(*args, **kwargs)
        groups = [str(name) for name in cfg if name != "hydra" and self.repository.group_exists(str(name))]
        for options in [cfg[group] for group in groups if isinstance(cfg[group], DictConfig)]:
            for name in options:
                if isinstance(option := options._get_node(name), DictConfig):
                    OmegaConf.set_struct(option, False)
        return cfg

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """One file of the composition; an experiment's without its values for groups that are chosen otherwise."""
        result = super()._load_single_config(default, repo)
        folder, _, name = str(default.config_path).rpartition("/")
        if folder == "experiment" and self._choices:
            planned = self._choices_given([f"experiment={name}"])
            assert isinstance(result.config, DictConfig)
            self._experiments += OmegaConf.to_yaml(result.config)
            for group in [group for group, option in planned.items() if self._choices.get(group) != option]:
                result.config.pop(group, None)
        return result

    def _choices_given(self, lines: Sequence[str]) -> dict[str, str | None]:
        """The option of every group after these overrides; nothing when one of them names no option."""
        try:
            planned = create_defaults_list(
                repo=self.repository,
                config_name=CONFIG_NAME,
                overrides_list=OverridesParser.create().parse_overrides(list(lines)),
                prepend_hydra=True,
                skip_missing=True,
            )
        except COMPOSITION_ERRORS:
            return {}  # composing, which follows, says what is wrong
        choices: dict[str, str | None] = planned.overrides.known_choices
        choices.pop("experiment", None)
        return choices

    def _resumed(self, path: str, parsed: Sequence[Override], compose: Callable[[list[str]], DictConfig]) -> DictConfig:
        """The config that the run in the directory ``path`` was started with."""
        directory = Path(path).expanduser().absolute()
        if not path or not (directory / "config.yaml").is_file():
            raise UsageError(f"resume={directory if path else ''}: not a run directory (it has no config.yaml)")
        own = [line for line in parsed if not line.key_or_group.startswith("hydra")]
        for line in own:
            if line.key_or_group not in RESUME_MAY_CHANGE:
                raise UsageError(
                    f"{line.input_line}: a resumed run goes on with its own config; beside resume only "
                    f"{' and '.join(RESUME_MAY_CHANGE[1:])} may be given"
                )
        cfg = compose([str(line.input_line) for line in parsed if line not in own])
        try:
            stored = OmegaConf.load(directory / "config.yaml")
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{directory / 'config.yaml'}: cannot be read ({str(error).splitlines()[0]})") from error
        if not isinstance(stored, DictConfig) or "trainer" not in stored:
            raise UsageError(f"resume={directory}: not a run directory (its config.yaml is not that of a run)")
        with open_dict(cfg):
            for name in [name for name in cfg if name != "hydra"]:
                del cfg[name]
            for name, node in stored.items():
                cfg[name] = node
            cfg.hydra.run.dir = str(directory)
            cfg.hydra.output_subdir = None
        planned = cfg.trainer.epochs
        for line in own:
            OmegaConf.update(cfg, line.key_or_group, line.value())
        if cfg.trainer.epochs != planned and "epochs" in cfg.scheduler:
            raise UsageError(
                f"trainer.epochs={cfg.trainer.epochs}: this run's schedule was laid out for {planned} epochs"
            )
        cfg.resume = str(directory)
        return cfg

    def _drop_unread(self, cfg: DictConfig, text: str, parsed: Sequence[Override]) -> None:
        """Drop an experiment's top-level keys whose readers are gone; refuse all others that nothing refers to."""
        given = {line.key_or_group.partition(".")[0] for line in parsed if not line.is_delete()}
        primary = self.repository.load_config(CONFIG_NAME)
        assert primary is not None
        for name in map(str, list(cfg)):
            own = name == "hydra" or name in primary.config or self.repository.group_exists(name)
            if own or _refers(text, name):
                continue
            if not _refers(self._experiments, name):
                raise UsageError(f"{name}: nothing in this config reads it{messages.hint(name, self, cfg)}")
            if name in given:
                raise UsageError(
                    f"{name}: nothing in this config reads it; what did has another value, or its group another option"
                )
            with open_dict(cfg):
                del cfg[name]


def _overrides_of_sweep(directory: Path, parsed: Sequence[Override]) -> list[str]:
    """What the sweep in ``directory`` was started with, for going on there."""
    path = directory / "multirun.yaml"
    for line in parsed:
        if not line.is_hydra_override() and line.key_or_group not in ("resume", "data_dir"):
            raise UsageError(
                f"{line.input_line}: a resumed sweep goes on with its own overrides; beside resume only data_dir "
                "may be given"
            )
    try:
        stored = OmegaConf.load(path)
        of_hydra, of_task = [list(stored.hydra.overrides[part]) for part in ("hydra", "task")]
        data_dir = str(stored.data_dir)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UsageError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    given = [str(line.input_line) for line in parsed if line.key_or_group != "resume"]
    if not any(line.startswith("data_dir=") for line in given):
        given.append(quoted(f"data_dir={data_dir}"))
    replaced = ("hydra.sweep.dir=", "hydra.mode=", "data_dir=")
    kept = [line for line in [*of_hydra, *of_task] if not line.startswith(replaced)]
    for line in parsed:
        if line.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            same = OmegaConf.select(stored, "hydra.runtime.choices", default={}).get(line.key_or_group) == line.value()
            part = line.key_or_group if same else line.key_or_group.replace("/", "[./]")  # its options with it
            kept = [text for text in kept if not re.match(rf"[+~]*{part}\b", text)]
    return [*kept, *given, "hydra.mode=MULTIRUN", quoted(f"hydra.sweep.dir={directory}")]


@functools.lru_cache(maxsize=4096)
def parsed(line: str) -> Override:
    override: Override = OverridesParser.create().parse_override(line)
    return override


def _text(cfg: DictConfig) -> str:
    """The config with its references unresolved."""
    return OmegaConf.to_yaml(cfg)


def _refers(text: str, name: str) -> bool:
    """Whether a config, as text, refers to a top-level key."""
    return re.search(rf"\$\{{{re.escape(name)}\b", text) is not None


def _choosers(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs like sizes and size, where the second's value is an entry of the first: ``${sizes.${size}.epochs}``."""
    return tuple(dict.fromkeys(re.findall(r"\$\{(\w+)\.\$\{(\w+)\}", text)))


def _check_choices(cfg: DictConfig, choosers: Sequence[tuple[str, str]]) -> None:
    """Refuse a ``size`` that the config has no ``sizes`` for, and whatever else chooses so."""
    for entries, name in choosers:
        legal, chosen = list(map(str, cfg.get(entries) or ())), str(cfg.get(name))
        if name in cfg and chosen not in legal:
            raise UsageError(f"{name}={chosen}: no such {name}{messages.among(chosen, legal)}")


def quoted(line: str) -> str:
    """An override whose value is a path, quoted for Hydra's grammar, which takes no =, comma or accent otherwise.

    Of those that a sweep may have several of, a comma parts two, unless there is a directory with it in its name.
    """
    name, equals, path = line.partition("=")
    key = name.lstrip("+")
    if key not in (*PATHS, *SWEPT_PATHS) or not equals or path in ("", "null") or path[0] in "'\"" or "${" in path:
        return line
    if key in PATHS:
        return f"{name}={_in_quotes(path)}"
    if re.match(r"\w+\(", path):
        return line
    parts, paths = path.split(","), []
    while parts:
        joined = (",".join(parts[:count]) for count in range(len(parts), 0, -1))
        paths.append(next((whole for whole in joined if Path(whole).expanduser().is_dir()), parts[0]))
        del parts[: paths[-1].count(",") + 1]
    return f"{name}={','.join(text if text == 'null' else _in_quotes(text) for text in paths)}"


def _in_quotes(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _list_experiments() -> str:
    """Names of the shipped experiments, each with the question that its file opens with, for ``--help``."""
    files = sorted((conf_dir() / "experiment").glob("*.yaml"))
    width = max(len(file.stem) for file in files)
    questions = [file.read_text().splitlines()[1].removeprefix("#").strip() for file in files]  # below @package
    return "\n".join(f"  {file.stem:<{width}}  {text}" for file, text in zip(files, questions, strict=True))


def _repeat(value: Any, times: int) -> list[Any]:
    """``${dlhw.repeat:${width},${depth}}``: as many hidden layers of one width."""
    if not isinstance(times, int) or isinstance(times, bool) or times < 0:
        raise ValueError(f"{times} must be a whole number, 0 or greater")
    return [value] * times
