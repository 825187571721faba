"""The run directory: what a run leaves and how it is read back."""
