"""The comparison that a run's config declares, built without importing anything that the config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlhw.cli import build, composition
from dlhw.errors import UsageError
from dlhw.storage import stored
from dlhw.views.comparison import Comparison, declared_options


def declared_comparison(run: Path, options: Mapping[str, Any] = MappingProxyType({})) -> Comparison:
    """Return the options of the comparison: the defaults, overridden by those in a run's config, then by ``options``.

    The defaults are those of the shipped file with the config's target; another target is ignored. Raise UsageError for
    an invalid option.
    """
    paths = sorted((composition.conf_dir() / "comparison").glob("*.yaml"))
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
    shipped = {defaults["_target_"]: defaults for defaults in files}
    declared = declared_options(run)
    defaults = shipped.get(declared.pop("_target_", None), shipped["dlhw.views.comparison.Comparison"])
    declared = defaults | declared
    try:
        _validated(declared)
    except UsageError as error:
        raise stored.Unreadable(run / "config.yaml", str(error).splitlines()[0], stored.RESTORE) from error
    return _validated(declared | dict(options))


def _validated(options: Mapping[str, Any]) -> Comparison:
    try:
        cfg = OmegaConf.create({"comparison": dict(options)})
    except OmegaConfBaseException as error:  # a value that no config can have
        raise UsageError(f"{error.full_key or 'comparison'}: {str(error).splitlines()[0]}") from error
    build.check_settings(cfg)
    comparison: Comparison = build.build(cfg, "comparison")
    return comparison
