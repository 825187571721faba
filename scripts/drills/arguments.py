"""The flags, keys of Hydra and arguments of other commands that ``lines.py`` draws, valid and invalid."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

HYDRA_KEYS: Mapping[str, tuple[str, ...]] = {
    "hydra.run.dir": ("one", "one/two", "outputs/x", "${now:%H}", "a=b", "a b", "${name}/x"),
    "hydra.sweep.dir": ("one", "one/two", "outputs/x", "${name}/x"),
    "hydra.sweep.subdir": ("${hydra.job.num}", "x", "x/y", "..", "../x", ".", "", "${hydra:job.num}", "${seed}", "/"),
    "hydra.output_subdir": ("null", ".hydra", "sub", "..", ".", "../one", "../../bait/run", "/", "", "a/b", "run.log"),
    "hydra.job.chdir": ("true", "false", "null", "abc"),
    "hydra.job.name": ("x", "a/b", "..", "", "null"),
    "hydra.job.num": ("1", "abc"),
    "hydra.job.config_name": ("x",),
    "hydra.job.env_set.A": ("b",),
    "hydra.verbose": ("true", "false", "[dlhw]", "dlhw", "abc", "null", "3"),
    "hydra.mode": ("RUN", "MULTIRUN", "run", "abc", "null", "3"),
    "hydra/launcher": ("basic", "vectorized", "nope", "null", "[basic]", "Basic"),
    "hydra/sweeper": ("grid", "basic", "nope", "null"),
    "hydra/job_logging": ("default", "none", "disabled", "nope", "dlhw"),
    "hydra/hydra_logging": ("default", "none", "nope"),
    "hydra/help": ("default", "nope"),
    "hydra/output": ("default", "nope"),
    "hydra.sweeper.params": ("{seed: '0,1'}", "{seed: 0}", "3", "null", "[]", "{}", "{nope: 1}", "{seed: range(2)}"),
    "hydra.sweeper.params.seed": ("0", "'0,1'", "range(2)"),
    "hydra.sweeper.fail_fast": ("true", "abc"),
    "hydra.sweeper.max_batch_size": ("1", "0"),
    "hydra.launcher.n_jobs": ("2", "abc"),
    "hydra.launcher.largest": ("1", "0", "abc"),
    "hydra.launcher.even_if_slower": ("true", "3"),
    "hydra.searchpath": ("[file://mine]", "[file:///nope]", "[pkg://nope]", "abc", "[]", "[nope]", "null"),
    "hydra.callbacks": ("{}", "null", "3", "{a: {_target_: nope.Nope}}"),
    "hydra.callbacks.directory": ("null",),
    "hydra.runtime.output_dir": ("one",),
    "hydra.nope": ("1",),
    "hydra": ("1", "null", "{}"),
    "hydra.run": ("1", "{}"),
}
RESUMES = (
    *("bait/run", "bait/run/", "./bait/run", "bait/sweep", "bait/sweep/seed=0", "bait/run/config.yaml", "bait", "."),
    *("nope", "", "null", "~", "~/x", "~nosuchuser/x", "..", "/", "/dev/null", "/dev/zero", "bait/run,bait/sweep"),
    *("[bait/run]", "bait/pictures", "${seed}", "${name}", "${oc.env:NOPE}", "'bait/run'", "\x1b[31m", "mine"),
    *("own.yaml", "x" * 300, "x/" * 3000, "bait/*", "é", "bait/run\n", "{a:1}", "empty", "bait/dangling"),
)
FLAGS = (
    *("--cfg job", "--cfg hydra", "--cfg all", "--cfg", "--cfg jbo", "--cfg=job --resolve", "--resolve", "--info"),
    *("--info all", "--info defaults-tree", "--info defaults", "--info config", "--info plugins"),
    *("--info searchpath", "--info nope", "--cfg job --package model", "--cfg job --package trainer.epochs"),
    *("--cfg job -p nope", "--package model", "--config-name train", "--config-name nope"),
    *("--config-name model/mlp", "--config-name ''", "--config-name", "--config-dir mine", "--config-dir nope"),
    *("--config-dir ''", "--config-path mine", "--config-path /nope", "--help", "-h", "--hydra-help", "--version"),
    *("-sc", "-sc install=bash", "-sc install=nope", "-sc uninstall=fish", "--shell-completion"),
    *("--experimental-rerun nope", "--experimental-rerun bait/run/.hydra/config.pickle", "--hel", "--res"),
    *("--exp x", "--conf job", "--epochs 3", "--lr=0.1", "--experiment flooding", "--trainer.epochs=1", "-x"),
    *("-m -m", "-r", "--run", "--multirun", "--", "-", "---"),
)
"""Flags of dlhw.train."""
COMPARES = (
    *("bait/sweep", "bait/run", "bait/run -o both", "bait/run bait/sweep -o both", "bait -o both", "bait", "."),
    *("nope", "''", "empty", "shots", "bait/pictures bait/run -o both", "bait/run bait/run -o both"),
    *("bait/run/config.yaml", "/dev/null", "bait/sweep -o bait/run", "bait/sweep -o mine/experiment/own.yaml"),
    *("bait/sweep -o shots", "bait/sweep -o ''", "bait/sweep -o /dev/null/x", "bait/sweep -o '~/x'"),
    *("bait/sweep --curves val_los -o both", "bait/sweep --curves val_loss train_loss -o both"),
    *("bait/sweep --overlay seed -o both", "bait/sweep --overlay nope -o both"),
    *("bait/sweep --against seed -o both", "bait/sweep --against name -o both", "bait/sweep --probes nope -o both"),
    *("bait/sweep --nope", "--cur", "", "'\x1b[31m'", f"{'x' * 300}", f"bait/sweep -o {'x' * 300}"),
    *("bait/dangling",),
)
"""Arguments of dlhw.compare."""
PREDICTS = (
    *("bait/pictures shots", "bait/pictures shots/a/0.png", "bait/pictures shots/a/0.png --json"),
    *("bait/pictures shots/a/0.png --top 1", "bait/pictures shots/a/0.png --top 0"),
    *("bait/pictures shots/a/0.png --top abc", "bait/pictures shots/a/0.png --weights last"),
    *("bait/pictures shots/a/0.png --weights nope", "bait/pictures shots/a/0.png --device cuda"),
    *("bait/pictures shots/a/0.png --device nope", "bait/pictures nope.png", "bait/pictures mycode.py"),
    *("bait/pictures empty", "bait/pictures ''", "bait/pictures /dev/null", "bait/pictures shots/a/0.png nope.png"),
    *(f"bait/pictures {'x' * 300}", "bait/pictures '\x1b[31m.png'", "bait/pictures", "bait/run shots"),
    *("bait/sweep shots", "bait shots", "nope shots", "'' shots", "", "bait/dangling shots", "shots bait/pictures"),
)
"""Arguments of dlhw.predict."""


def split(text: str) -> tuple[str, ...]:
    """Return the words of a shell line."""
    return tuple(shlex.split(text))
