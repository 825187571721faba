"""The files of a run directory: writing them, and reading them back."""
