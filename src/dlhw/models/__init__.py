"""Model factories: a data set's sample shape and class count in, an ``nn.Module`` of logits out."""
