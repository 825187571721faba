"""The verbs of the command ``dlhw``; each is also a program of its own, such as ``python -m dlhw.compare``."""

from __future__ import annotations

VERBS = {
    "train": "train a model or run a study: what dlhw does without a verb",
    "search": "search for the best hyperparameters: train -m with hydra/sweeper=search",
    "compare": "compare finished runs",
    "evaluate": "measure a run on other labelled data",
    "predict": "apply a run to pictures or to a table",
    "show": "what a run or sweep did, and what to do with it next",
    "ls": "list runs and sweeps",
    "new": "write a folder with your own model, dataset and experiment",
    "find-lr": "find a learning rate for an experiment",
    "export": "write finished runs to TensorBoard, MLflow or another logger",
    "completion": "print the line that makes the shell complete verbs and overrides",
}
"""What each verb does, in one line."""


def module_of(verb: str) -> str:
    """Return the module of a verb, which has a function ``main``."""
    return "dlhw.search.__main__" if verb == "search" else f"dlhw.{verb.replace('-', '_')}"


def listed() -> str:
    """Return a line per verb for ``--help``."""
    width = max(map(len, VERBS))
    return "\n".join(f"  dlhw {verb:<{width}}  {text}" for verb, text in VERBS.items())
