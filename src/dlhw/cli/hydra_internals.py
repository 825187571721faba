"""Every private name of Hydra and OmegaConf that dlhw uses; no other module uses one.

Hydra 1.3 has no public interface to change what a config file contributes to a composition, or to use a sweeper from
another package than ``hydra_plugins``. :class:`ComposingLoader` and the two ``install`` functions do both.
``tests/test_hydra_internals.py`` checks that all these names still exist with the same signatures.

Hydra's main branch (1.4 in development) changes three things. ``get_overrides_dirname`` is gone: a resolver computes
``hydra.job.override_dirname`` when it is read, and :func:`set_override_dirname` is not needed. ``Hydra.compose_config``
calls ``_load_configuration`` of every ``ConfigLoaderImpl`` and not ``load_configuration``, so ``Loader`` must override
that method, which has three more arguments. ``Hydra.get_mode`` no longer composes but asks the loader, which
reads ``hydra.mode`` from the command line and ``train.yaml`` alone; :class:`ComposingLoader` must override ``get_mode``
and compose there, so that an experiment or a resumed sweep can still start a sweep.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any, NoReturn

import hydra._internal.hydra
import hydra._internal.utils
import hydra.version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig
from omegaconf.grammar_parser import parse
from omegaconf.grammar_visitor import OmegaConfGrammarParser as Grammar  # type: ignore[attr-defined]

from dlhw.errors import UsageError
from dlhw.runtime.paths import printable

LIBRARIES = ("hydra", "omegaconf", "yaml", "antlr4")
"""The packages that read command lines and config files."""
COMMAND_LINE = "command-line"
"""Hydra's name for the origin of the folder of ``--config-dir``."""


def run(task: Callable[[DictConfig], object], arguments: Sequence[str], *, config_dir: Path, config_name: str) -> None:
    """Run Hydra's command line as ``hydra.main`` does, except that errors are raised and not printed.

    Raise UsageError for an invalid flag.
    """
    hydra.version.setbase("1.3")
    hydra._internal.utils.run_and_report = lambda func: func()
    parser = hydra._internal.utils.get_args_parser()
    parser.allow_abbrev = False
    parser.error = _raise_usage_error  # type: ignore[method-assign]
    args = parser.parse_args(list(arguments))
    for flag, value in (("--config-path", args.config_path), ("--config-name", args.config_name)):
        if value is not None:
            raise UsageError(f"{flag}: invalid; put own config files into a folder and add --config-dir FOLDER")
    if args.config_dir is not None:
        _require_config_files(Path(args.config_dir))
    logging.raiseExceptions = not args.info  # Hydra logs the information to stdout, whose reader may have ended
    hydra._internal.utils._run_hydra(
        args=args,
        args_parser=parser,
        task_function=task,
        config_path=str(config_dir),
        config_name=config_name,
    )


def search_path(shipped: Path, arguments: Sequence[str] = ()) -> ConfigSearchPath:
    """Return the search path of a command line with these arguments: the folders of config files."""
    path: ConfigSearchPath = hydra._internal.utils.create_config_search_path(str(shipped))
    folder = hydra._internal.utils.get_args(list(arguments)).config_dir
    if folder is not None:
        anchor = SearchPathQuery(provider="schema")
        path.prepend(COMMAND_LINE, f"file://{Path(folder).expanduser().absolute()}", anchor=anchor)
    return path


def completions(loader: ConfigLoader, config_name: str, words: Sequence[str], last: str) -> list[str]:
    """Return Hydra's completions of the word ``last`` after the flags and overrides ``words``."""
    result: list[str] = DefaultCompletionPlugin(loader)._query(config_name, " ".join([*words, last]))
    return result


def flags() -> list[str]:
    """Return the flags of Hydra's command line."""
    actions = hydra._internal.utils.get_args_parser()._actions
    return [flag for action in actions for flag in action.option_strings if flag != "--experimental-rerun"]


def unknown_flag(arguments: Sequence[str]) -> str | None:
    """Return the first argument that has the form of a flag but is none; flags must be written in full."""
    known = flags()
    words = (text for text in arguments if re.match(r"--?[A-Za-z]", text))
    return next((text for text in words if text.partition("=")[0] not in known), None)


def _require_config_files(folder: Path) -> None:
    """Raise UsageError if the folder of ``--config-dir`` does not exist, or has neither config files nor modules."""
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"--config-dir {printable(folder)}: {reason}; expected a folder with config files")
    patterns = ("*.yaml", "*.py", "*/*.yaml", "*/*.yml", "*/*/*.yaml")
    if not any(next(folder.glob(pattern), None) for pattern in patterns):
        raise UsageError(
            f"--config-dir {printable(folder)}: has no config files; expected files like experiment/mine.yaml"
        )


def _raise_usage_error(message: str) -> NoReturn:
    raise UsageError(message)


def raised_by_library(error: BaseException) -> bool:
    """Return whether Hydra, called by :func:`run`, raised the error outside of the task."""
    ours = [name for name in _modules(error) if name.partition(".")[0] not in LIBRARIES]
    return raised_in_library(error) and ours[-1] == __name__


def raised_in_library(error: BaseException) -> bool:
    """Return whether an error was raised in Hydra, OmegaConf or a parser, or in a standard module that they called."""
    return _modules(error)[-1].partition(".")[0] in LIBRARIES


def _modules(error: BaseException) -> list[str]:
    """Return the modules of an error's traceback, without those of the standard library and of other packages."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return [name for name in names if name.partition(".")[0] in ("dlhw", "__main__", *LIBRARIES)]


def without_library_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame after those with which Hydra calls the task."""
    start, current = traceback, traceback
    while current is not None:
        if current.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "hydra":
            start = current.tb_next or start
        current = current.tb_next
    return start


class ComposingLoader(ConfigLoaderImpl):
    """Hydra's loader, with two methods that a subclass overrides to change what is composed."""

    repository: Repository

    def __init__(self, config_search_path: ConfigSearchPath, *, shipped: Path, read: Read) -> None:
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path, shipped=shipped, read=read)

    def edit_file(self, path: str, config: DictConfig) -> DictConfig:
        """Return what the config file at ``path``, such as ``experiment/flooding``, contributes."""
        return config

    def edit_composed(self, cfg: DictConfig) -> DictConfig:
        """Return the config made of all files, before the overrides are applied."""
        return cfg

    def compose(
        self, config_name: str | None, overrides: Sequence[str], run_mode: RunMode, **options: bool
    ) -> DictConfig:
        """Compose as Hydra does, with the two methods above. Raise Hydra's errors.

        ``options`` are the further arguments of Hydra's ``load_configuration``.
        """
        return super().load_configuration(config_name, list(overrides), run_mode, **options)

    def compute_defaults_list(self, config_name: str | None, overrides: list[str], run_mode: RunMode) -> DefaultsList:
        """Return what ``--info`` shows. Composes first, because the subclass explains the mistakes that this finds."""
        self.load_configuration(config_name, overrides, run_mode)
        return super().compute_defaults_list(config_name, overrides, run_mode)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return the options of a group. Without a config Hydra's method only adds a copy, which takes 15 ms."""
        if config_name is None and not overrides:
            return self.repository.get_group_options(group_name, results_filter)
        return super().get_group_options(group_name, results_filter, config_name, overrides)

    def choices(self, config_name: str, overrides: Sequence[Override]) -> dict[str, str | None]:
        """Return the option of every group with these overrides. Raise Hydra's errors."""
        defaults = create_defaults_list(
            repo=self.repository,
            config_name=config_name,
            overrides_list=list(overrides),
            prepend_hydra=True,
            skip_missing=True,
        )
        choices: dict[str, str | None] = defaults.overrides.known_choices
        return choices

    def config_dir(self) -> str | None:
        """Return the folder of ``--config-dir``; None without one."""
        return self.repository.config_dir()

    def use_config_dir(self, folder: str) -> None:
        """Read config files from this folder, too, as with ``--config-dir``."""
        self.config_search_path.prepend(COMMAND_LINE, f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        self.repository = self.repository.with_folders(self.config_search_path)

    def has_group(self, name: str) -> bool:
        """Return whether there is a folder of config files with this name."""
        return self.repository.group_exists(name)

    def file(self, path: str) -> DictConfig | None:
        """Return the config file at ``path`` by itself; None if there is none."""
        loaded = self.repository.load_config(path)
        return loaded.config if loaded is not None and isinstance(loaded.config, DictConfig) else None

    @staticmethod
    def apply(overrides: Sequence[Override], cfg: DictConfig) -> None:
        """Apply overrides of values to a composed config, in place. Raise Hydra's errors."""
        ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        if isinstance(result.config, DictConfig):
            result.config = self.edit_file(str(default.config_path), result.config)
        return result

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        return self.edit_composed(super()._compose_config_from_defaults_list(defaults, repo))


class Repository(ConfigRepository):
    """The config files of all folders. ``read(repository, name, path, load)`` reads each of them.

    Args:
        config_search_path: the folders.
        shipped: the one with dlhw's own files.
        read: returns the result of ``load()``, and may raise errors of its own.
    """

    def __init__(self, config_search_path: ConfigSearchPath, *, shipped: Path, read: Read) -> None:
        super().__init__(config_search_path)
        self.shipped = shipped
        self._read = read

    def with_folders(self, config_search_path: ConfigSearchPath) -> Repository:
        """Return the repository of other folders."""
        return Repository(config_search_path, shipped=self.shipped, read=self._read)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return the config file with this name; None if there is none."""
        path = self.path(config_path)
        if path is None:
            return super().load_config(config_path)
        return self._read(self, config_path, path, functools.partial(super().load_config, config_path))

    def paths(self, name: str) -> list[Path]:
        """Return the files with this name, such as ``experiment/flooding``; Hydra reads the first."""
        names = [(source, name if name.endswith(".yaml") else f"{name}.yaml") for source in self.get_sources()]
        files = [Path(source.path) / file for source, file in names if source.scheme() == "file"]
        return [path for path in files if path.is_file()]

    def path(self, name: str) -> Path | None:
        """Return the file with this name that Hydra reads; None if there is none."""
        return next(iter(self.paths(name)), None)

    def config_dir(self) -> str | None:
        """Return the folder of ``--config-dir``; None without one."""
        return next((source.path for source in self.get_sources() if source.provider == COMMAND_LINE), None)

    def groups(self) -> list[str]:
        """Return the names of all top-level groups, and of Hydra's as ``hydra/launcher``."""
        top = self.get_group_options("", ObjectType.GROUP)
        return [name for name in top if name != "hydra"] + [
            f"hydra/{name}" for name in self.get_group_options("hydra", ObjectType.GROUP)
        ]

    def is_shipped(self, path: Path) -> bool:
        """Return whether this file belongs to dlhw."""
        return path.is_relative_to(self.shipped)

    def is_chosen_by_default(self, group: str) -> bool:
        """Return whether the shipped config has an option of this group."""
        return group.startswith("hydra/") or (self.shipped / group).is_dir()


Read = Callable[[Repository, str, Path, Callable[[], "ConfigResult | None"]], "ConfigResult | None"]


def install_loader(make: Callable[..., ConfigLoader]) -> None:
    """Make Hydra create its config loader by ``make(config_search_path=...)``."""
    hydra._internal.hydra.ConfigLoaderImpl = make  # type: ignore[attr-defined,assignment]


def install_plugins(names: Collection[str]) -> None:
    """Allow plugins of these classes, which are imported when a config first names them."""

    def is_allowed(name: str) -> bool:
        if name in names:
            Plugins.instance().register(get_class(name))
            return True
        return Plugins.is_in_toplevel_plugins_module(name)

    Plugins.instance().is_in_toplevel_plugins_module = is_allowed  # type: ignore[method-assign,assignment]


def set_override_dirname(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Set ``hydra.job.override_dirname`` to the value that composing with these task overrides would give."""
    cfg.hydra.job.override_dirname = get_overrides_dirname(list(overrides), **cfg.hydra.job.config.override_dirname)


@dataclass(frozen=True)
class Reference:
    """An interpolation such as ``${sizes.${size}.epochs}``: here ``("sizes", Reference(("size",)), "epochs")``."""

    keys: tuple[str | Reference | None, ...]
    """Names or, in their place, references; None for a key that a resolver computes."""
    dots: int = 0
    """Leading dots of a relative reference; 0 for one that starts at the root of the config."""


@functools.lru_cache(maxsize=4096)
def references(text: str) -> tuple[Reference, ...]:
    """Return all references in a string value of a config; a reference comes before those nested in it."""
    return tuple(_references(parse(text))) if "${" in text else ()


def _references(node: Any) -> Iterator[Reference]:
    if isinstance(node, Grammar.InterpolationNodeContext):
        yield _reference(node)
    for child in getattr(node, "children", None) or ():
        yield from _references(child)


def _reference(node: Any) -> Reference:
    dots, keys = 0, []
    for child in node.getChildren():
        if isinstance(child, Grammar.ConfigKeyContext):
            nested = next(iter(_references(child)), None)
            computed = isinstance(child.getChild(0), Grammar.InterpolationContext)
            direct = computed and isinstance(child.getChild(0).getChild(0), Grammar.InterpolationNodeContext)
            keys.append((nested if direct else None) if computed else child.getText())
        elif child.getText() == "." and not keys:
            dots += 1
    return Reference(tuple(keys), dots)
