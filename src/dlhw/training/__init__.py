"""The training loop and everything that it is made of."""
