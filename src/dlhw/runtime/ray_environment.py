"""The settings of Ray, which it reads from the environment when it is imported."""

from __future__ import annotations

import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no reports over the network
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # with uv run, the processes have the working directory of the command
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # also those of Ray Tune
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the log of dlhw instead
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command
}


def set_defaults() -> None:
    """Set the variables that the environment does not have."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
