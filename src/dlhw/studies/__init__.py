"""Studies: questions answered without the training loop, in the same run directory."""
