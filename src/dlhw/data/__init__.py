"""Data sets as tensors: read from files, checked, split, normalized."""
