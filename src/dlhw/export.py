"""The command that writes runs to loggers after they have ended: ``dlhw export RUN... --to tensorboard``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.cli import failures
from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, read_path

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dlhw.loggers.run_loggers import Log
    from dlhw.storage.record import Row

OVERRIDE = "logger."
"""What an argument starts with that is an override and not a run."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw export",
        description="Write runs that have ended to loggers, with the same content as logger=NAME in training. What a "
        "logger already has of a run is not written twice.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run, a sweep or folder with all its runs, or 'last'; also overrides such as logger.mlflow.uri=URI",
    )
    parser.add_argument("--to", action="append", required=True, metavar="LOGGER", help="may be given several times")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Export the runs that the command line names. An error ends the program with one line and exit code 1."""
    options = argument_parser().parse_intermixed_args(arguments)
    with failures.end_program(options.runs[0]):
        overrides = [text for text in options.runs if text.startswith(OVERRIDE)]
        names = list(dict.fromkeys(options.to))
        declared = _declared(names, overrides)
        for directory in _runs([text for text in options.runs if text not in overrides]):
            export(directory, declared, fixed=[line.partition("=")[0] for line in overrides])
            print(f"{printable(directory)}: exported to {', '.join(names)}")


def export(directory: Path, declared: DictConfig, *, fixed: Sequence[str] = ()) -> None:
    """Write the run in a directory to the loggers that a config declares.

    Their options are those of the run's own config if it used the logger, except for the ``fixed`` keys. Raise
    UsageError, also if a logger fails.
    """
    from dlhw.cli import build
    from dlhw.loggers.run_loggers import Log
    from dlhw.storage import stored
    from dlhw.storage.directories import explanation
    from dlhw.storage.record import Record

    config = stored.read_config(directory)
    if config is None:
        raise UsageError(explanation(directory))
    rows = stored.read_metrics(directory) or []
    with Record(directory).locked():
        for name, logger in build.loggers(_with_options_of(config, declared, fixed)).items():
            try:
                _write(Log(name, logger, directory), rows)
            except UsageError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                raise UsageError(f"{printable(directory)}: cannot be exported to {name} ({reason})") from error


def _write(log: Log, rows: Sequence[Row]) -> None:
    try:
        log.start()
        log.rows(rows)
        log.end()
    finally:
        log.logger.close()


def _declared(names: Sequence[str], overrides: Sequence[str]) -> DictConfig:
    """Return a config with these loggers. Raise UsageError for an unknown one or an invalid option."""
    from dlhw.cli import build, program
    from dlhw.cli.composition import conf_dir
    from dlhw.runtime.hints import expected_one_of

    valid = sorted(path.stem for path in (conf_dir() / "logger").glob("*.yaml") if path.stem != "none")
    for name in names:
        if name not in valid:
            raise UsageError(f"--to {printable(name)}: unknown logger{expected_one_of(name, valid)}")
    cfg = program.compose(f"logger=[{','.join(names)}]", *overrides)
    build.loggers(cfg)
    return cfg


def _with_options_of(config: Mapping[str, Any], declared: DictConfig, fixed: Sequence[str]) -> DictConfig:
    """Return the declared config with the options of loggers in a run's config. Targets are never taken from there."""
    from omegaconf import OmegaConf

    from dlhw.storage.identity import copied

    cfg = copied(declared)
    OmegaConf.update(cfg, "name", config["name"])
    for name in cfg.logger:
        used = config.get("logger", {}).get(name)
        for key in cfg.logger[name] if isinstance(used, Mapping) else ():
            if key in used and key != "_target_" and f"logger.{name}.{key}" not in fixed:
                OmegaConf.update(cfg, f"logger.{name}.{key}", used[key])
    return cfg


def _runs(texts: Sequence[str]) -> list[Path]:
    """Return the directories of the runs that the command line names, each once, the oldest first. Raise UsageError."""
    from dlhw.storage.listing import entries, locate

    directories: dict[Path, Path] = {}
    for text in texts:
        path = read_path(text, key="RUN")
        folder = locate(path, "run or sweep") if text == "last" else path
        found = [entry.path for entry in reversed(entries(folder, jobs=True)) if entry.kind == "run"]
        if not found:
            raise UsageError(f"{printable(folder)}: has no runs; expected a run, a sweep or a folder of runs")
        directories |= {run.resolve(): run for run in found}
    if not directories:
        raise UsageError("RUN: missing; expected a run, a sweep or a folder of runs")
    return list(directories.values())


if __name__ == "__main__":
    main()
