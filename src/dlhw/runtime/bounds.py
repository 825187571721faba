"""The bounds of settings, for the command line and for the files of a run that are read back."""

from __future__ import annotations

LARGEST_COUNT = 10**9
"""The largest number of epochs, steps, samples of a batch and the like."""
LARGEST_SEED = 2**63 - 1
LARGEST_SIDE = 8192
"""The largest side of a picture in pixels."""
