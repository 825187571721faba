"""Model factories: from the shape of a sample and the number of outputs to an ``nn.Module``."""
