"""Model factories: a data set's sample shape and number of outputs in, an ``nn.Module`` out."""
