"""Datasets as tensors: reading and checking files, splitting, normalizing, augmenting, batching."""
