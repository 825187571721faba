"""The seed, the name and the directories are checked before anything is created."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from dlhw.cli import rules
from dlhw.errors import UsageError
from support.commands import dlhw, files
from support.composing import error_message

VALID = {
    "name": "train",
    "seed": 0,
    "data_dir": "data",
    "output_dir": "outputs",
    "hydra": {
        "run": {"dir": "${output_dir}/${name}"},
        "sweep": {"dir": "${output_dir}/${name}"},
        "output_subdir": ".hydra",
        "job": {"chdir": None},
        "callbacks": {"directory": {"_target_": "dlhw.cli.program.ClaimDirectory"}},
    },
}

NAME = "must be a directory name of at most 100 letters, digits and . _ + -, but not of a device, as aux is"


def message(mode: RunMode = RunMode.RUN, **changes: object) -> str:
    cfg = OmegaConf.merge(VALID, changes)
    for name, value in changes.items():
        if value == "deleted":
            del cfg[name]
        elif value == "???":
            cfg[name] = value  # merging skips it
    with pytest.raises(UsageError) as raised:
        rules.check_program_keys(cfg, mode)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": -1}, "seed=-1: must be a whole number from 0 to 9223372036854775807"),
        ({"seed": True}, "seed=true: must be a whole number from 0 to 9223372036854775807"),
        ({"seed": None}, "seed=null: must be a whole number from 0 to 9223372036854775807"),
        ({"seed": 10**30}, f"seed={10**30}: must be a whole number from 0 to 9223372036854775807"),
        ({"seed": "???"}, "seed: missing; expected seed=VALUE"),
        ({"seed": "deleted"}, "seed: must not be deleted"),
        ({"seed": "${seed}"}, "seed: Recursive interpolation detected"),
        ({"name": "${nope:1}"}, "name: Unsupported interpolation type nope"),
        ({"name": "../x"}, f"name=../x: {NAME}"),
        ({"name": "aux.b"}, f"name=aux.b: {NAME}"),
        ({"output_dir": ""}, "output_dir=: must be a path"),
        ({"output_dir": "${oc.env:NOT_SET}"}, "output_dir: Environment variable 'NOT_SET' not found"),
        ({"hydra": {"run": {"dir": "${x}"}}}, "hydra.run.dir: refers to x, which the config does not have"),
        (
            {"hydra": {"job": {"chdir": True}}},
            "hydra.job.chdir=true: must be null or false, because paths are relative to the working directory",
        ),
        ({"hydra": {"run": {"dir": None}}}, "hydra.run.dir=None: must be a path"),
        (
            {"hydra": {"callbacks": {"directory": "${..nope}"}}},
            "hydra.callbacks.directory: refers to nope, which the config does not have",
        ),
        (
            {"hydra": {"callbacks": {"directory": None}}},
            "hydra.callbacks.directory._target_: must not be deleted",
        ),
        (
            {"hydra": {"callbacks": {"directory": {"_target_": "mine.Callback"}}}},
            "hydra.callbacks.directory._target_=mine.Callback: must be dlhw.cli.program.ClaimDirectory, which creates "
            "the directory of the run",
        ),
        *(
            (
                {"hydra": {"output_subdir": name}},
                f"hydra.output_subdir={name}: must be .hydra or null",
            )
            for name in ("..", ".", "../one", "/tmp", "a/b", "config.yaml")
        ),
    ],
    ids=str,
)
def test_invalid_value_gets_one_line(changes: dict[str, object], expected: str) -> None:
    assert message(**changes) == expected


def test_every_mistake_gets_a_line() -> None:
    assert message(seed=-1, name="", data_dir="").count("\n") == 2


def test_the_directory_of_a_sweep_is_checked_only_in_a_sweep() -> None:
    cfg = OmegaConf.merge(VALID, {"hydra": {"sweep": {"dir": ""}}})
    rules.check_program_keys(cfg, RunMode.RUN)
    assert message(RunMode.MULTIRUN, hydra={"sweep": {"dir": ""}}) == "hydra.sweep.dir=: must be a path"


def test_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    cfg = OmegaConf.merge(VALID, {"output_dir": "~/runs"})
    rules.check_program_keys(cfg, RunMode.RUN)
    assert (cfg.output_dir, cfg.hydra.run.dir) == ("/home/someone/runs", "/home/someone/runs/train")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["~seed"], "seed: must not be deleted"),
        (["hydra.run.dir=two", "hydra.output_subdir=../one"], "hydra.output_subdir=../one: must be .hydra or null"),
        (["--experiment", "flooding"], "--experiment: unknown flag; did you mean experiment=flooding?"),
        (["-experiment=flooding"], "-experiment=flooding: unknown flag; did you mean experiment=flooding?"),
        (["--epochs", "3"], "--epochs: unknown flag; did you mean trainer.epochs=3?"),
        (["--epochs=3", "seed=1"], "--epochs=3: unknown flag; did you mean trainer.epochs=3?"),
        (["--lr", "-m"], "--lr: unknown flag; did you mean optimizer.lr=VALUE?"),
        (["--halp"], "--halp: unknown flag; did you mean --help?"),
        (["-e"], "-e: unknown flag; options are written KEY=VALUE; --hydra-help lists the flags"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder; expected a folder with config files"),
        (["--config-dir", "."], "--config-dir .: has no config files; expected files like experiment/mine.yaml"),
        (["--experimental-rerun=x"], "--experimental-rerun=x: unknown flag"),
        (["--package"], "argument --package/-p: expected one argument"),
        (["-sc"], "Expecting one subcommand from"),
        (["--resolve"], "The --resolve flag can only be used"),
        (["--run", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["hydra.job_logging.root.level=LOUD"], "Unknown level: 'LOUD'"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=x"], "hydra.sweep.subdir: must not be set"),
        (["-m", "seed=0,1", "hydra.sweeper.params=3"], "hydra.sweeper.params=3: must be a mapping of keys to values"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_outside_of_the_config_gets_one_line_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    ended = dlhw(*arguments, at=tmp_path)
    assert ended.code == 1
    assert ended.lines[0].startswith(line)
    assert len(ended.lines) == 1
    assert files(tmp_path) == set()


def test_version_is_that_of_dlhw(tmp_path: Path) -> None:
    assert dlhw("--version", at=tmp_path).out.startswith("dlhw 0.")


@pytest.mark.parametrize("arguments", [["trainer.epochs=abc"], ["-m", "trainer.epochs=abc,def", "seed=0,1"]], ids=str)
def test_wrong_setting_of_the_trainer_is_reported_before_torch_is_imported(
    tmp_path: Path, arguments: list[str]
) -> None:
    code = "import sys, dlhw.train\ntry: dlhw.train.main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert process.stderr.startswith("trainer.epochs=abc: must be a whole number")
    assert (process.returncode, process.stdout) == (1, "False\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resume=a", "resume=b"], "resume='b': resume is given twice; expected one run or sweep"),
        (["~resume=a"], "~resume=a: must be one run or sweep"),
        (["resume=a", "hydra.run.dir=b"], "hydra.run.dir='b': invalid with resume, which continues in its directory"),
    ],
    ids=str,
)
def test_resume_names_one_directory_and_continues_in_it(tmp_path: Path, arguments: list[str], line: str) -> None:
    assert dlhw(*arguments, at=tmp_path).lines == [line]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("", "must be a path"), ("${x}", "must not contain ${, which begins a reference in a config")],
)
def test_the_line_for_an_invalid_environment_variable_names_it(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLHW_DATA", value)
    assert error_message("seed=0", "name=x") == f"environment variable DLHW_DATA={value}: {reason}"


def test_a_working_directory_that_looks_like_a_reference_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "${x}").mkdir()
    monkeypatch.chdir(tmp_path / "${x}")
    assert error_message("seed=0", "data_dir=/data", "output_dir=/outputs") == (
        f"{tmp_path}/${{x}}: the path of the working directory must not contain ${{, which begins a reference in a "
        "config; start in another directory"
    )


def test_values_that_look_like_references_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICTURES", "${x}")
    assert error_message("dataset=image_folder", "dataset.root=${oc.env:PICTURES}") == (
        "dataset.root=${x}: must not contain ${, which begins a reference"
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("dataset.root=.", "data_dir=../data"), "output_dir=outputs: inside dataset.root=., "),
        (
            ("dataset.root=pictures", "data_dir=..", "output_dir=cats"),
            "output_dir=cats: inside dataset.root=pictures",
        ),
        (("dataset.root=.", "hydra.{kind}.dir=cats/run"), "cats/run: inside dataset.root=., "),
        (("dataset.root=.", "output_dir=../outputs"), ""),
        (("dataset.root=.", "output_dir=.outputs"), ""),
        (("dataset.root=cats",), ""),
        (("dataset.root=nowhere",), ""),
    ],
)
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_results_among_the_pictures_get_one_line(
    overrides: tuple[str, ...], line: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pictures")
    overrides = tuple(text.format(kind=kind) for text in ("dataset=image_folder", *overrides))
    message = error_message(*overrides, sweep=kind == "sweep")
    assert message.startswith(line.format(kind=kind)) if line else "inside dataset.root" not in message
    assert "\n" not in message
