"""Compose the config of a resumed run or sweep from the files in its directory.

A resumed run keeps its config, and a resumed sweep its overrides; only a few keys may change. This module does not
import torch, so that an invalid command is refused at once.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from dlhw.cli import own_code
from dlhw.cli.hydra_internals import COMMAND_LINE
from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, read_path, shortened
from dlhw.storage import directories, listing, stored
from dlhw.storage.identity import RESUMED_RUN_MAY_CHANGE, RESUMED_SWEEP_MAY_CHANGE, is_among
from dlhw.storage.stored import Unreadable

log = logging.getLogger(__name__)


def directory_to_resume(overrides: Sequence[Override]) -> Path | None:
    """Return the absolute path of the run or sweep that the override ``resume=DIR`` means; None without one.

    A folder of runs means the newest of them, and ``last`` the newest in ``outputs``. Raise UsageError.
    """
    given = [override for override in overrides if override.key_or_group == "resume"]
    for other in given[1:]:
        raise UsageError(f"{other.input_line}: resume is given twice; expected one run or sweep")
    if not given or (given[0].value() is None and not given[0].is_delete()):
        return None
    (resume,) = given
    if resume.is_sweep_override() or resume.is_delete():
        raise UsageError(f"{resume.input_line}: must be one run or sweep")
    for override in overrides:
        if override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir"):
            raise UsageError(f"{override.input_line}: invalid with resume, which continues in its directory")
    value = resume.value()
    path = read_path(value if isinstance(value, list | dict) else str(value), key="resume")
    return Path(os.path.abspath(listing.locate(path, "run or sweep")))


def config_of_run(
    directory: Path, overrides: Sequence[Override], compose: Callable[[Sequence[str]], DictConfig]
) -> DictConfig:
    """Return the config of the run in ``directory`` with the changes of the command line. Raise UsageError."""
    content = stored.read_config(directory)
    if content is None:
        raise UsageError(f"resume={directories.explanation(directory, expected='run or sweep')}")
    if content.get("debug"):
        raise UsageError(f"resume={printable(directory)}: a run with debug=true is not resumed; start it again")
    own_code.make_importable(*stored.code_folders(directory))
    changes = changes_of_run(overrides)
    others = [override for override in overrides if override.key_or_group not in changes]
    composed = compose([str(override.input_line) for override in others])
    if any(is_among(override.key_or_group, ["logger"]) for override in others):
        changes["logger"] = composed.get("logger", {})
    cfg = resumed_config(composed, OmegaConf.create(content), changes, directory)
    require_unfinished(directory, cfg)
    return cfg


def changes_of_run(overrides: Sequence[Override]) -> dict[str, Any]:
    """Return the values that the overrides besides ``resume=RUN`` change. Raise UsageError for a fixed key.

    Those of the loggers are left out, because their options are composed.
    """
    changed = [override for override in overrides if not override.is_hydra_override()]
    for override in changed:
        if override.is_sweep_override():
            raise UsageError(f"{override.input_line}: must have one value, because one run is resumed")
        if not is_among(override.key_or_group, ("resume", *RESUMED_RUN_MAY_CHANGE)):
            raise UsageError(
                f"{override.input_line}: invalid with resume, because a resumed run keeps its config; "
                f"expected only {' or '.join(RESUMED_RUN_MAY_CHANGE)}"
            )
    return {
        override.key_or_group: override.value()
        for override in changed
        if not is_among(override.key_or_group, ["logger"])
    }


def resumed_config(
    composed: DictConfig, run_config: DictConfig, changes: Mapping[str, Any], directory: Path
) -> DictConfig:
    """Return the config of the run in ``directory``, with Hydra's part of the composed config and the changes.

    Raise UsageError if the number of epochs changes and the learning-rate schedule depends on it.
    """
    result = copy.deepcopy(composed)
    with open_dict(result):
        for name in [name for name in result if name != "hydra"]:
            del result[name]
        for name, node in run_config.items():
            result[name] = node
        result.resume = str(directory)
        result.hydra.run.dir = str(directory)
        result.hydra.output_subdir = None
    epochs = result.trainer.epochs
    for name in RESUMED_RUN_MAY_CHANGE:
        if name in changes:
            OmegaConf.update(result, name, changes[name], merge=False, force_add=True)
    if result.trainer.epochs != epochs and "epochs" in result.scheduler:
        raise UsageError(
            f"trainer.epochs={result.trainer.epochs}: the learning-rate schedule of this run depends on its "
            f"number of epochs; expected {epochs}"
        )
    return result


def require_unfinished(directory: Path, cfg: DictConfig) -> int:
    """Return the number of epochs that the run in ``directory`` has finished by its summary, 0 without one.

    Raise UsageError if the run is finished and ``cfg.trainer.epochs`` does not continue it, or if the summary is
    invalid.
    """
    summary = stored.read_summary(directory)
    trained: int = summary["final"]["epoch"] if "final" in summary else 0
    if summary.get("status") != "finished":
        return trained
    if "final" not in summary:
        raise UsageError(f"resume={directory}: already finished")
    epochs = cfg.trainer.epochs
    if summary["stopped"] != "epochs" or (isinstance(epochs, int) and trained >= epochs):
        raise UsageError(
            f"resume={directory}: already finished after {trained} epoch{'' if trained == 1 else 's'}"
            + ("; a larger trainer.epochs continues training" if summary["stopped"] == "epochs" else "")
        )
    return trained


def overrides_of_sweep(
    directory: Path,
    overrides: Sequence[Override],
    *,
    parse: Callable[[str], Override],
    quote: Callable[[str], str],
) -> list[str]:
    """Return the overrides that resume the sweep in ``directory``: the stored ones, then those of the command line.

    The options of the stored launcher or sweeper are dropped if the command line names another one. Raise UsageError
    for an override of a key that may not change, and if ``multirun.yaml`` is invalid.
    """
    for override in overrides:
        if not override.is_hydra_override() and not is_among(
            override.key_or_group, ("resume", *RESUMED_SWEEP_MAY_CHANGE)
        ):
            raise UsageError(
                f"{override.input_line}: invalid with resume, because a resumed sweep keeps its overrides; "
                f"expected only {' or '.join(RESUMED_SWEEP_MAY_CHANGE)}"
            )
    content = stored.read_multirun(directory)
    if content is None:
        raise UsageError(f"resume={directories.explanation(directory, expected='run or sweep')}")
    kept = _kept_overrides(directory / "multirun.yaml", content, overrides, parse)
    added = [str(override.input_line) for override in overrides if override.key_or_group != "resume"]
    if not any(override.key_or_group == "data_dir" for override in overrides):
        added.append(quote(f"data_dir={content['data_dir']}"))
    return [*kept, *added, "hydra.mode=MULTIRUN", quote(f"hydra.sweep.dir={directory}")]


def config_dir_of_sweep(directory: Path) -> str | None:
    """Return the folder of ``--config-dir`` with which the sweep was started; None without one.

    Raise UsageError if it does not exist any more.
    """
    content = stored.read_multirun(directory)
    sources = content["hydra"]["runtime"].get("config_sources", []) if content is not None else []
    folders = [source["path"] for source in sources if source["provider"] == COMMAND_LINE]
    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(
                f"resume={printable(directory)}: started with --config-dir {printable(folder)}, which does not exist; "
                "add --config-dir FOLDER with its new place"
            )
    return folders[0] if folders else None


def resumed_multirun(directory: Path, cfg: DictConfig) -> DictConfig:
    """Return the content of ``multirun.yaml`` after the sweep is resumed with ``cfg``.

    It keeps the overrides that started the sweep. Only the places of the data and of the person's config files change.
    """
    result = OmegaConf.create(stored.read_multirun(directory))
    started_in = result.hydra.runtime.get("cwd")
    if started_in != os.getcwd():
        log.info("the sweep was started in %s; its relative paths now refer to %s", started_in, os.getcwd())
    result.data_dir = cfg.data_dir
    result.hydra.runtime.config_sources = cfg.hydra.runtime.config_sources
    return result


def _kept_overrides(
    path: Path, content: Mapping[str, Any], overrides: Sequence[Override], parse: Callable[[str], Override]
) -> list[str]:
    """Return the overrides in the ``multirun.yaml`` at ``path`` that those of the command line do not replace."""
    replaced = {"hydra.sweep.dir", "hydra.mode", "data_dir"}
    without_options = []
    choices = content["hydra"]["runtime"]["choices"]
    for override in overrides:
        if is_among(override.key_or_group, ["logger"]):
            without_options.append("logger")
        if override.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            replaced.add(override.key_or_group)
            if choices.get(override.key_or_group) != override.value():
                without_options.append(override.key_or_group.replace("/", "."))
    kept = []
    for line in [*content["hydra"]["overrides"]["hydra"], *content["hydra"]["overrides"]["task"]]:
        try:
            override = parse(line)
        except HydraException as error:
            reason = f"invalid override {shortened(line, longest=60)}"
            raise Unreadable(path, reason, stored.RESTORE) from error
        key = override.key_or_group
        sweeps_hydra = override.is_sweep_override() and override.is_hydra_override()
        if not key or key == "resume" or sweeps_hydra:
            raise Unreadable(path, f"invalid override {shortened(line, longest=60)}", stored.RESTORE)
        if key not in replaced and not any(f"{key}.".startswith(f"{group}.") for group in without_options):
            kept.append(line)
    return kept
