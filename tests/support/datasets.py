"""The options of datasets, as their config files set them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def options(name: str, **changed: Any) -> dict[str, Any]:
    """Return the options of a dataset's factory by its config file, with seed 0 and some ``changed``."""
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return {**{key: value for key, value in config.items() if key != "_target_"}, "seed": 0, **changed}
