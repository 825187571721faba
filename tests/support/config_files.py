"""The config files that dlhw ships."""

from __future__ import annotations

from dlhw.cli.composition import conf_dir

CONF = conf_dir()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))


def option_names(group: str) -> list[str]:
    """Return the sorted names of the options of a group."""
    return [path.stem for path in FILES if path.parent.as_posix() == group]


EXPERIMENTS = option_names("experiment")
