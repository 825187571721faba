"""Studies: one file per question that is answered without the training loop, in an ordinary run directory."""
