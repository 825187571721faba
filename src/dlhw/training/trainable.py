"""The training of a config with other values for some keys, as a function for libraries that search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from dlhw.errors import UsageError
from dlhw.storage.identity import absolute_paths, copied, leaves
from dlhw.training.loop import AfterEpoch

_NOT_SEARCHED = ("study", "name", "seed", "trainer.epochs", "trainer.monitor", "data_dir", "output_dir", "resume")


@dataclass(frozen=True)
class Trainable:
    """Trains the network of a config that also has a study. It can be sent to other processes.

    Args:
        cfg: the config.
        train: ``train(cfg, directory, after_epoch)`` trains one run.
        check: ``check(cfg, build)`` raises UsageError for an invalid config and, with ``build``, for parts that do not
            fit together.
    """

    cfg: DictConfig
    train: Callable[[DictConfig, Path, AfterEpoch], None]
    check: Callable[[DictConfig, bool], object]

    @property
    def epochs(self) -> int:
        """The number of epochs of a run."""
        return int(self.cfg.trainer.epochs)

    @property
    def monitor(self) -> str:
        """The name of the validation metric."""
        return str(self.cfg.trainer.monitor)

    def __call__(self, values: Mapping[str, str], directory: Path, after_epoch: AfterEpoch) -> None:
        """Train a run with these values by key, as on the command line, or resume it if the directory has it."""
        directory.mkdir(parents=True, exist_ok=True)
        self.train(self._with(values), directory, after_epoch)

    def validate(self, values: Mapping[str, str], *, build: bool) -> None:
        """Raise UsageError for values that the config cannot have, and for keys that other keys refer to.

        The config of a resumed run has values in place of references. With ``build``, load the data and build the model
        to check that they fit together.
        """
        for key in values:
            if any(f"{key}.".startswith(f"{name}.") for name in _NOT_SEARCHED):
                raise UsageError(f"study.space: {key}: cannot be searched; expected a setting of the training")
            selected = OmegaConf.select(self.cfg, key, default=self)
            if selected is self or OmegaConf.is_dict(selected):
                raise UsageError(f"study.space: {key}: not a setting of the config; expected one such as optimizer.lr")
        cfg = self._with(values)
        try:
            self.check(cfg, build)
        except UsageError as error:
            raise UsageError(f"study.space: {error}") from error
        before, after = (dict(leaves(_resolved(other))) for other in (self._with({}), cfg))
        changed = [name for name in after if name not in values and before.get(name) != after[name]]
        if changed:
            raise UsageError(f"study.space: {changed[0]} refers to another key; expected {changed[0]} itself")

    def _with(self, values: Mapping[str, str]) -> DictConfig:
        """Return the config with these values, and without the study."""
        cfg = copied(self.cfg)
        with open_dict(cfg):
            cfg.merge_with(absolute_paths(_resolved(cfg)))  # other processes may have another working directory
            cfg.study = {"_target_": None}
            cfg.resume = None
        cfg.merge_with_dotlist([f"{key}={text}" for key, text in values.items()])
        return cfg


def _resolved(cfg: DictConfig) -> dict[Any, Any]:
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(content)
