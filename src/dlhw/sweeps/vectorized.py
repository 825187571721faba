"""A launcher that trains many jobs of a sweep at once, as one ensemble: ``hydra/launcher=vectorized``.

Jobs whose shapes and code are the same are computed together by the same loop; each gets the directory, files and
numbers that it would have alone. What cannot be grouped is trained one by one, and a line says why.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlhw.data.tensors import together
from dlhw.ensemble import Ensemble
from dlhw.loop import Run, fit
from dlhw.train import Parts

OWN = ("seed", "regularization", "optimizer", "scheduler", "init")
SHARED = ("data_dir", "dataset", "model", "loss", "trainer", "probe", "study")
"""Parts of the config in which jobs of a group may differ, and those in which they may not (but in the dropout rate)."""


@dataclass(frozen=True)
class Job:
    cfg: DictConfig
    parts: Parts
    run: Run


def group_key(cfg: DictConfig, epochs_done: int) -> str:
    """Equal for jobs that may be trained as one ensemble."""
    shared: dict[str, Any] = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in SHARED[1:]}
    shared["model"]["dropout"] = shared["model"].get("dropout", 0) > 0
    kind = {name: cfg.optimizer.get(name) for name in ("_target_", "name", "fused")}
    return json.dumps([shared, str(cfg.data_dir), kind, epochs_done], sort_keys=True, default=str)


def train_together(jobs: Sequence[Job]) -> None:
    """Train the runs of ``jobs``, which have one group key, as one ensemble. Raises Cannot, before anything began."""
    first = jobs[0].parts
    schedules: dict[str, Any] = {}
    settings = [
        (OmegaConf.to_yaml(job.cfg.optimizer, resolve=True), OmegaConf.to_yaml(job.cfg.scheduler, resolve=True))
        for job in jobs
    ]
    order = sorted(range(len(jobs)), key=lambda k: settings[k])  # neighbours share an update
    jobs = [jobs[k] for k in order]
    for k, job in zip(order, jobs, strict=True):
        schedules.setdefault(settings[k][1], job.parts.schedule)
    ensemble = Ensemble(
        [job.parts.model for job in jobs],
        [job.parts.optimizer for job in jobs],
        [schedules[settings[k][1]] for k in order],
    )
    data = replace(
        first.data,
        train=together([job.parts.data.train for job in jobs]),
        val=together([job.parts.data.val for job in jobs]),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        fit(
            ensemble,
            [job.run for job in jobs],
            data,
            first.data_loss,
            trainer=replace(first.trainer, channels_last=False),
            precision=first.precision,
            probe=first.probe,
        )
