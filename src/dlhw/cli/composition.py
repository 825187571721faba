"""Compose configs with Hydra and the rules of :mod:`dlhw.cli.rules`; report each mistake in one line.

This module does not import torch, so that help and completion answer at once.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli import config_files, hydra_internals, messages, origins, own_code, resuming, rules, verbs
from dlhw.cli.failures import stop
from dlhw.cli.hydra_internals import ComposingLoader
from dlhw.errors import UsageError
from dlhw.runtime import ray_environment, signals
from dlhw.runtime.paths import read_path
from dlhw.storage import directories

CONFIG_NAME = "train"
MOST_REPEATED = 10_000
"""The largest number of equal values, such as widths of layers, that a config may ask for."""
PATH_KEYS = ("resume", "data_dir", "output_dir", "hydra.run.dir", "hydra.sweep.dir")
"""Keys whose value is one path; a comma in it belongs to the path."""
PATH_LIST_KEYS = ("start", "init.run")
"""Keys whose values are paths, several in a sweep; a comma may separate two paths or belong to one."""
LIBRARY_ERRORS = (HydraException, OmegaConfBaseException)
COMPOSITION_ERRORS = (*LIBRARY_ERRORS, ValueError, AssertionError)  # Hydra raises them all
PLUGINS = (
    "dlhw.sweeps.grid.Grid",
    "dlhw.sweeps.search.Search",
    "dlhw.sweeps.vectorized.Vectorized",
    "dlhw.sweeps.automatic.Automatic",
)
"""The classes of dlhw's sweepers and launchers."""
_JOB_SUBDIR = "hydra.sweep.subdir="
_JOB_DIRECTORY = ("hydra.sweep.dir=", _JOB_SUBDIR)
"""How the overrides begin that give the directory of a job, which the sweeper adds when it launches the job."""
_MOST_CHECKED = 2000
"""The largest number of configs that are kept between sweeper and launcher, each of 20 kB."""


def conf_dir() -> Path:
    """Return the shipped ``conf/``: inside the installed package, or beside ``src/`` in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def prepare(*, ends_program: bool = False) -> None:
    """Install the loader, resolvers, plugins and defaults of dlhw; every process does this before it composes.

    With ``ends_program`` an invalid command line ends the program with a message.
    """
    ray_environment.set_defaults()
    setup_globals()  # Hydra's resolvers
    hydra_internals.install_loader(functools.partial(Loader, ends_program=ends_program))
    hydra_internals.install_plugins(PLUGINS)
    OmegaConf.register_new_resolver("dlhw.experiments", _list_experiments, replace=True)
    OmegaConf.register_new_resolver("dlhw.verbs", verbs.listed, replace=True)
    OmegaConf.register_new_resolver("dlhw.repeat", _repeat, replace=True)
    OmegaConf.register_new_resolver("dlhw.folder", _folder, replace=True)


class Loader(ComposingLoader):
    """Hydra's config loader with dlhw's rules. Raises UsageError, or ends the program with its message.

    ``composed`` caches pickled configs of jobs with their selections (see :func:`dlhw.cli.rules.selections`). The key
    is everything that they depend on except the values of plain overrides. The sweeper composes every job to check it,
    and the launcher again with the directory of the job: ``_checked`` has the pickled configs of jobs in between.
    """

    def __init__(self, config_search_path: ConfigSearchPath, *, ends_program: bool = False) -> None:
        super().__init__(config_search_path, shipped=conf_dir(), read=config_files.read)
        self.composed: dict[Any, tuple[bytes, rules.Selections]] = {}
        self._checked: dict[Any, bytes] = {}
        self.resumed: Path | None = None
        """The sweep that the command line resumes."""
        self._ends_program = ends_program
        self._lines: tuple[str, ...] = ()  # the overrides of the config being composed
        self._known_choices: dict[tuple[str, ...], dict[str, str | None]] = {}  # by overrides
        self._experiment_readers: dict[str, list[str]] = {}  # of the experiment files that were composed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "composed": {}, "_checked": {}}  # a worker process composes its own

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Return the config for these overrides. Raise UsageError for an invalid one."""
        options = {"from_shell": from_shell, "validate_sweep_overrides": validate_sweep_overrides}
        try:
            cfg = self._load(config_name, overrides, run_mode, **options)
            with origins.located(cfg):
                rules.check_program_keys(cfg, run_mode)
                if run_mode == RunMode.RUN:
                    rules.require_resolvable(cfg)
            return cfg
        except UsageError as error:
            if self._ends_program:
                stop(error)
            raise

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """Return the config of one job, as Hydra would compose it.

        Jobs that differ only in plain overrides are composed once and then copied with new values, which takes
        milliseconds. Raise UsageError, even where :meth:`load_configuration` ends the program.
        """
        prepare()  # this may be a worker process
        own_code.make_importable(os.getcwd(), self.config_dir())
        lines = [quoted(line) for line in [*origins.override_lines(master_config.hydra, "hydra"), *sweep_overrides]]
        config_name = master_config.hydra.job.config_name
        try:
            overrides = [parsed(line) for line in lines]
        except HydraException:
            overrides = []  # composing raises the error
        sources = tuple((source.provider, source.path) for source in self.config_search_path.get_path())
        place = (config_name, os.getcwd(), sources)
        key = (*place, self.structure(overrides))
        job = (*place, *(line for line in lines if not line.startswith(_JOB_DIRECTORY)))
        directory = [override for override in overrides if str(override.input_line).startswith(_JOB_DIRECTORY)]
        cfg = (
            self._in_directory(self._checked.pop(job), directory, lines) if directory and job in self._checked else None
        )
        if cfg is None and overrides and key in self.composed:
            cfg = self._updated(*self.composed[key], overrides)
        if cfg is None:
            cfg = self._load(config_name, lines, RunMode.RUN)
            rules.check_program_keys(cfg, RunMode.MULTIRUN)
            _forget_plugin_types(cfg)
            self.composed[key] = pickle.dumps(cfg), rules.selections(cfg)
        if overrides and not any(line.startswith(_JOB_SUBDIR) for line in lines):
            self._checked[job] = pickle.dumps(cfg)
            if len(self._checked) > _MOST_CHECKED:
                del self._checked[next(iter(self._checked))]
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def _in_directory(self, other: bytes, directory: list[Override], lines: Sequence[str]) -> DictConfig | None:
        """Return the config of a job that was composed before, with its directory; None if that is invalid."""
        cfg: DictConfig = pickle.loads(other)
        try:
            self.apply(directory, cfg)
            rules.check_program_keys(cfg, RunMode.MULTIRUN)
        except COMPOSITION_ERRORS:
            return None
        cfg.hydra.overrides.hydra = [line for line in lines if parsed(line).is_hydra_override()]
        return cfg

    def structure(self, overrides: Sequence[Override]) -> tuple[str, ...]:
        """Return the overrides without the values of plain ones. Configs of equal structure have the same keys."""
        return tuple(
            str(override.key_or_group if self._is_plain(override) else override.input_line) for override in overrides
        )

    def _updated(self, other: bytes, selections: rules.Selections, overrides: list[Override]) -> DictConfig | None:
        """Return another job's config with the values of these overrides; None if they are invalid."""
        cfg: DictConfig = pickle.loads(other)
        try:
            self.apply([override for override in overrides if self._is_plain(override)], cfg)
            rules.require_listed_entries(cfg, selections)
            rules.check_program_keys(cfg, RunMode.MULTIRUN)
        except COMPOSITION_ERRORS:
            return None
        task = [override for override in overrides if not override.is_hydra_override()]
        cfg.hydra.overrides.hydra = [override.input_line for override in overrides if override.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in task]
        hydra_internals.set_override_dirname(cfg, task)
        return cfg

    def unread_params(
        self, master_config: DictConfig, params: Sequence[str], overrides: Sequence[Override]
    ) -> frozenset[str]:
        """Return the swept keys of an experiment that a job with these overrides does not read.

        Such a key belongs to an option of a group for which the job uses another option, or it is a top-level key that
        no value of the config refers to any more.
        """
        lines = [
            *origins.override_lines(master_config.hydra, "hydra"),
            *(str(override.input_line) for override in overrides),
        ]
        try:
            cfg = self._load(master_config.hydra.job.config_name, lines, RunMode.RUN)
        except UsageError:
            return frozenset()  # composing the job raises the error
        overridden = {override.key_or_group for override in overrides}
        return frozenset(
            name
            for name in params
            if OmegaConf.select(cfg, name, default=cfg, throw_on_missing=False) is cfg
            and (name.partition(".")[0] in overridden or name.partition(".")[0] in self._experiment_readers)
        )

    def _is_plain(self, override: Override) -> bool:
        """Return whether the override only gives an existing key another number, text or list."""
        return (
            override.type == OverrideType.CHANGE
            and override.value_type == ValueType.ELEMENT
            and override.package is None
            and override.key_or_group != "resume"
            and not isinstance(override.value(), dict)
            and not re.search(r"\$\{|\?\?\?", override.input_line or "")
            and (not override.is_hydra_override() or override.key_or_group in ("hydra.sweep.dir", "hydra.sweep.subdir"))
            and not self.has_group(override.key_or_group)
        )

    @signals.stoppable(False)  # OmegaConf's context managers would replace the exception for a signal
    def _load(self, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: bool) -> DictConfig:
        def compose(lines: Sequence[str]) -> DictConfig:
            self._lines, self._experiment_readers = tuple(lines), {}
            return self.compose(config_name, lines, run_mode, **options)

        own_code.make_importable(os.getcwd(), self.config_dir())
        lines = [quoted(line) for line in overrides]
        try:
            parsed_overrides = OverridesParser.create().parse_overrides(lines)
            directory = resuming.directory_to_resume(parsed_overrides)
            if directory is not None and not directories.is_sweep(directory):
                return resuming.config_of_run(directory, parsed_overrides, compose)
            if directory is not None:
                lines = resuming.overrides_of_sweep(directory, parsed_overrides, parse=parsed, quote=quoted)
                if self.config_dir() is None and (folder := resuming.config_dir_of_sweep(directory)):
                    self.use_config_dir(folder)
                self.resumed = directory
                parsed_overrides = OverridesParser.create().parse_overrides(lines)
            return self._apply_rules(compose(lines), parsed_overrides)
        except UsageError:
            raise
        except (*COMPOSITION_ERRORS, TypeError) as error:
            if not isinstance(error, LIBRARY_ERRORS) and not hydra_internals.raised_in_library(error):
                raise
            try:
                message = messages.explain(lines, self, compose, error)
            except (*COMPOSITION_ERRORS, TypeError):
                message = messages.described(error, self)
            raise UsageError(message) from error

    def _apply_rules(self, cfg: DictConfig, overrides: Sequence[Override]) -> DictConfig:
        primary = self.file(CONFIG_NAME)
        assert primary is not None
        with origins.located(cfg):
            result = rules.without_unread_keys(
                cfg,
                known=[str(name) for name in cfg if name == "hydra" or name in primary or self.has_group(str(name))],
                overridden={
                    override.key_or_group.partition(".")[0] for override in overrides if not override.is_delete()
                },
                experiment_readers=self._experiment_readers,
                hint=lambda name: messages.hint(name, self, cfg),
            )
            rules.require_listed_entries(result, rules.selections(cfg))
        return result

    def edit_composed(self, cfg: DictConfig) -> DictConfig:
        """Let the options that are mappings accept new keys."""
        groups = [name for name in map(str, cfg) if name != "hydra" and self.has_group(name)]
        return rules.with_open_options(cfg, groups)

    def edit_file(self, path: str, config: DictConfig) -> DictConfig:
        """Drop an experiment's values for groups whose option the command line replaces."""
        folder, _, name = path.rpartition("/")
        if folder != "experiment":
            return config
        choices = self._choices_with(self._lines)
        if not choices:
            return config
        for key, values in rules.readers(config).items():
            self._experiment_readers.setdefault(key, []).extend(values)
        own_choices = self._choices_with((f"experiment={name}",))
        rules.require_training(name, own_choices.get("study", "none"), choices.get("study"))
        return rules.without_replaced_groups(config, own_choices, choices)

    def _choices_with(self, lines: tuple[str, ...]) -> dict[str, str | None]:
        """Return the option of every group with these overrides; empty if one of them is invalid."""
        if lines not in self._known_choices:
            try:
                choices = self.choices(CONFIG_NAME, OverridesParser.create().parse_overrides(list(lines)))
            except COMPOSITION_ERRORS:
                choices = {}  # composing raises the error
            self._known_choices[lines] = {group: name for group, name in choices.items() if group != "experiment"}
        return self._known_choices[lines]


def completed_overrides(words: Sequence[str], last: str) -> list[str]:
    """Return the overrides that begin with ``last`` after the flags and overrides ``words``. Raise UsageError."""
    prepare()
    loader = Loader(hydra_internals.search_path(conf_dir(), words))
    return hydra_internals.completions(loader, CONFIG_NAME, words, last)


def flag_hint(flag: str, following: Sequence[str]) -> str:
    """Return the end of the error for an unknown flag, which is followed by these arguments: what to write instead."""
    prepare()
    loader = Loader(hydra_internals.search_path(conf_dir()))

    def compose(lines: Sequence[str]) -> DictConfig:
        return loader.load_configuration(CONFIG_NAME, list(lines), RunMode.RUN)

    return messages.flag_hint(flag, following, loader, compose)


@functools.lru_cache(maxsize=4096)
def parsed(line: str) -> Override:
    """Parse an override with Hydra's grammar."""
    override: Override = OverridesParser.create().parse_override(line)
    return override


def quoted(line: str) -> str:
    """Quote the value of an override if it is a path, so that it may contain ``=``, commas and accents.

    For keys with several paths, a comma separates two paths unless a directory with this comma in its name exists.
    """
    name, equals, path = line.partition("=")
    key = name.lstrip("+")
    is_path = key in (*PATH_KEYS, *PATH_LIST_KEYS) and equals and path not in ("", "null")
    if not is_path:
        return _with_quoted_text(line)
    if path[0] in "'\"" or "${" in path:
        return line
    if key in PATH_KEYS:
        return f"{name}={_in_quotes(path)}"
    if re.match(r"\w+\(", path):
        return line
    parts, paths = path.split(","), []
    while parts:
        joined = (",".join(parts[:count]) for count in range(len(parts), 0, -1))
        paths.append(next((candidate for candidate in joined if _is_directory(candidate)), parts[0]))
        del parts[: paths[-1].count(",") + 1]
    return f"{name}={','.join(text if text == 'null' else _in_quotes(text) for text in paths)}"


def _is_directory(path: str) -> bool:
    try:
        return read_path(path).is_dir()
    except UsageError:
        return False


def _with_quoted_text(line: str) -> str:
    """Quote each value of an override that Hydra's grammar rejects only for characters such as accents."""
    name, equals, values = line.partition("=")
    if (
        not equals
        or re.fullmatch(r"[\w\s,./:+$%*@?|\\-]*", values, re.ASCII)
        or re.search(r"[\[\](){}'\"=]|\$\{", values)
    ):
        return line
    quoted_values = [
        _in_quotes(value) if re.search(r"[^\w\s./:+$%*@?|\\-]|[^\x00-\x7f]", value, re.ASCII) else value
        for value in values.split(",")
    ]
    return f"{name}={','.join(quoted_values)}"


def _in_quotes(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _list_experiments() -> str:
    """Return the shipped experiments for ``--help``, each with the question in its first comment."""
    files = sorted((conf_dir() / "experiment").glob("*.yaml"))
    width = max(len(file.stem) for file in files)
    lines = [file.read_text(encoding="utf-8").splitlines()[1] for file in files]  # after @package
    questions = [line.removeprefix("#").strip() for line in lines]
    return "\n".join(f"  {file.stem:<{width}}  {text}" for file, text in zip(files, questions, strict=True))


def _repeat(value: Any, times: int) -> list[Any]:
    """Return a list of ``times`` equal values: ``${dlhw.repeat:${width},${depth}}`` gives ``depth`` equal widths."""
    if not isinstance(times, int) or isinstance(times, bool) or not 0 <= times <= MOST_REPEATED:
        raise ValueError(f"{times} must be a whole number from 0 to {MOST_REPEATED}")
    return [value] * times


def _folder(name: Any, debug: Any) -> str:
    """Return the folder of the runs with this name in the output directory."""
    return f"{directories.DEBUG_FOLDER}/{name}" if debug is True else str(name)


def _forget_plugin_types(cfg: DictConfig) -> None:
    """Replace the structured configs of Hydra's plugins by plain ones.

    Hydra imports plugins twice, and pickle refuses objects whose class is not that of the imported module.
    """
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        for name in ("launcher", "sweeper"):
            if isinstance(cfg.hydra.get(name), DictConfig):
                cfg.hydra[name] = OmegaConf.to_container(cfg.hydra[name])
