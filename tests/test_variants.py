"""Variants trained at once equal their single runs in float64 after 100 steps, whatever settings they differ in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dlhw import train
from dlhw.cli import lifecycle
from dlhw.cli.assembly import assemble
from dlhw.storage.record import Record
from dlhw.sweeps.vectorized import GroupedJob, group_key, train_at_once
from support.comparing import assert_equal
from support.composing import compose
from support.marks import slow

BASE = ("dataset=digits", "trainer.precision=fp64", "trainer.device=cpu", "trainer.epochs=12")
CASES = {
    "flooding": ["regularization=flooding regularization.flood=0", "regularization=flooding regularization.flood=0.7"],
    "seed": ["seed=0", "seed=1", "seed=2"],
    "rate": ["optimizer.lr=0.1", "optimizer.lr=0.02", "optimizer.lr=0.1"],
    "momentum": ["optimizer=sgd", "optimizer=momentum", "optimizer=nesterov"],
    "weight decay": ["optimizer=adamw", "optimizer=adamw optimizer.weight_decay=0.3"],
    "betas": ["optimizer=adam", "optimizer=adam optimizer.betas=[0.5,0.9] optimizer.lr=0.01 seed=3"],
    "adagrad": ["optimizer=adagrad", "optimizer=adagrad optimizer.lr=0.1 +optimizer.initial_accumulator_value=0.1"],
    "rmsprop": ["optimizer=rmsprop", "optimizer=rmsprop optimizer.momentum=0.9"],
    "class name": [
        "optimizer=torch optimizer.name=NAdam",
        "optimizer=torch optimizer.name=NAdam optimizer.lr=0.01",
    ],
    "penalties": ["", "regularization=l1 regularization.l1=1e-3", "regularization=l2 regularization.l2=1e-3"],
    "dropout rate": ["model.dropout=0.2", "model.dropout=0.5", "model.dropout=0.2 seed=4"],
    "batch norm": ["model.batch_norm=true", "model.batch_norm=true optimizer.lr=0.03 seed=1"],
    "dropout and batch norm": [
        "model.hidden=[12,8] model.batch_norm=true model.dropout=0.3",
        "model.hidden=[12,8] model.batch_norm=true model.dropout=0.1 seed=5 optimizer=momentum",
    ],
    "kind of initialization": ["init=uniform init.d=2", "init=xavier", "init=orthogonal", "init=he", "init=uniform"],
    "schedule": ["scheduler=cosine", "scheduler=step scheduler.every_epochs=2", "scheduler=warmup", ""],
    "clipping": ["trainer.clip_norm=0.5", "trainer.clip_norm=0.5 seed=1"],
    "convolutions": [
        "model=cnn model.channels=[3,4] model.kernel=3 trainer.channels_last=true model.dropout=0.2",
        "model=cnn model.channels=[3,4] model.kernel=3 trainer.channels_last=true model.dropout=0.4 seed=2",
    ],
    "convolutions with batch norm": [
        "model=cnn model.channels=[3] model.kernel=3 model.batch_norm=true",
        "model=cnn model.channels=[3] model.kernel=3 model.batch_norm=true seed=2 regularization=l2",
    ],
    "probes": ["probe=layers model.dropout=0.1 seed=1", "probe=layers model.dropout=0.1 seed=2 init=he"],
    "different samples": [
        "dataset=separable dataset.n=400 model.hidden=[] trainer.batch_size=32 seed=1",
        "dataset=separable dataset.n=400 model.hidden=[] trainer.batch_size=32 seed=2",
        "dataset=separable dataset.n=400 model.hidden=[] trainer.batch_size=32 seed=1 regularization=l1",
    ],
    "label smoothing": ["loss.label_smoothing=0.2", "loss.label_smoothing=0.2 seed=8"],
    "evaluated, hinge loss": [
        "trainer.train_metrics=evaluated loss=multi_margin",
        "trainer.train_metrics=evaluated loss=multi_margin seed=9",
    ],
}

QUICK = {
    "flooding",
    "seed",
    "momentum",
    "penalties",
    "dropout and batch norm",
    "schedule",
    "clipping",
    "different samples",
}
"""The cases of the quick run; the others are slow."""


def overrides(line: str) -> list[str]:
    return [*BASE, *(line if "model" in line else f"model.hidden=[12] {line}").split()]


def grouped_job(directory: Path, line: str) -> GroupedJob:
    directory.mkdir(parents=True)
    job = GroupedJob(compose(*overrides(line)))
    job.parts = assemble(job.cfg)
    job.run = lifecycle.begin(job.cfg, Record(directory), job.parts)
    return job


def single_run(directory: Path, line: str) -> Record:
    directory.mkdir(parents=True)
    record = Record(directory)
    train.run(compose(*overrides(line)), record)
    return record


def read_table(path: Path) -> list[list[float | str]]:
    def value(text: str) -> float | str:
        try:
            return float(text)
        except ValueError:
            return text

    return [[value(text) for text in line.split(",")] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "lines", [lines if name in QUICK else slow(lines, name=name) for name, lines in CASES.items()], ids=CASES
)
def test_every_variant_equals_its_single_run(tmp_path: Path, lines: list[str]) -> None:
    jobs = [grouped_job(tmp_path / f"at_once{k}", line) for k, line in enumerate(lines)]
    assert len({group_key(job.cfg) for job in jobs}) == 1
    train_at_once(jobs)
    for k, line in enumerate(lines):
        single = single_run(tmp_path / f"single{k}", line)
        assert single.rows[-1]["step"] >= 100
        run = jobs[k].run
        assert run is not None
        assert_equal(run.record.rows, single.rows, "rows")
        probes = list((tmp_path / f"single{k}").glob("probes/*.csv"))
        assert len(probes) == (2 if "probe" in line else 0)
        for probe in probes:
            ours, expected = (read_table(path / "probes" / probe.name) for path in (run.record.path, single.path))
            assert_equal(ours, expected, probe.name)
        for name in ("last.pt", "best.pt"):
            ours, expected = (
                torch.load(tmp_path / f"{kind}{k}" / name, weights_only=True) for kind in ("at_once", "single")
            )
            assert_equal(ours, expected, name)
        assert OmegaConf.load(tmp_path / f"at_once{k}" / "config.yaml") == OmegaConf.load(
            tmp_path / f"single{k}" / "config.yaml"
        )
