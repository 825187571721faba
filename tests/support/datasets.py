"""The options of datasets, as their config files set them."""

from __future__ import annotations

from typing import Any

import yaml

from support.config_files import CONF


def options(name: str, **changed: Any) -> dict[str, Any]:
    """Return the options of a dataset's factory by its config file, with seed 0 and some ``changed``."""
    config = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())
    return {**{key: value for key, value in config.items() if key != "_target_"}, "seed": 0, **changed}
