"""Pictures of a network of the Neural Network Playground: its units, how they change in training, an animation."""

from dlhw.views.playground.report import check, playground

__all__ = ["check", "playground"]
