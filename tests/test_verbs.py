"""The command ``dlhw`` and its verbs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dlhw as package
from dlhw import __main__ as command
from dlhw.cli.verbs import VERBS, listed, module_of
from dlhw.search import __main__ as search
from support.commands import SMALL, dlhw, only, summary
from support.processes import environment


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_a_module_that_describes_itself(verb: str, tmp_path: Path) -> None:
    assert callable(importlib.import_module(module_of(verb)).main)
    ended = dlhw(verb, "--help", at=tmp_path, main=command.main)
    assert (ended.code, ended.err) == (0, "")
    first = "dlhw trains" if verb == "train" else f"usage: dlhw {verb} "
    assert ended.out.startswith(first)


def test_help_lists_the_verbs(tmp_path: Path) -> None:
    assert listed() in dlhw("--help", at=tmp_path, main=command.main).out


def test_version_is_that_of_dlhw(tmp_path: Path) -> None:
    for arguments in (["--version"], ["compare", "--version"], ["experiment=flooding", "--version"]):
        assert dlhw(*arguments, at=tmp_path, main=command.main).out == f"dlhw {package.__version__}\n"


def test_train_is_the_verb_without_a_verb(tmp_path: Path) -> None:
    for arguments in (("train", *SMALL), SMALL):
        ended = dlhw(*arguments, "trainer.epochs=1", "seed=3", at=tmp_path, main=command.main)
        assert ended.code == 0, ended.err
    first, second = sorted(tmp_path.glob("outputs/*/*"))
    assert summary(first)["best"]["val_loss"] == summary(second)["best"]["val_loss"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran"], "tran: expected key=value; did you mean dlhw train?"),
        (["experiment=flooding", "compare"], "compare: expected key=value; compare must be the first word after dlhw"),
    ],
)
def test_misplaced_verb_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    ended = dlhw(*words, at=tmp_path, main=command.main)
    assert (ended.code, ended.err) == (1, f"{message}\n")
    assert not list(tmp_path.iterdir())


def test_search_is_a_sweep_with_the_search_sweeper(tmp_path: Path) -> None:
    lines = (*SMALL, "experiment=flooding", "trainer.epochs=1", "hydra.sweeper.method=random", "hydra.sweeper.trials=2")
    ended = dlhw("search", *lines, "b=interval(0, 0.1)", at=tmp_path, main=command.main)
    assert ended.code == 0, ended.err
    assert summary(only(list(tmp_path.glob("outputs/flooding/*"))))["jobs"] == 2


def test_help_of_search_lists_its_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dlhw", "--help"])
    search.main()
    out = capsys.readouterr().out
    assert "\n  method: hyperband # random, grid, " in out
    assert "_target_" not in out


def test_verbs_are_programs_of_their_own(tmp_path: Path) -> None:
    """``python -m dlhw`` and ``python -m dlhw.VERB`` do the same."""
    for words in (["dlhw", "ls", "--help"], ["dlhw.ls", "--help"]):
        ended = subprocess.run(
            [sys.executable, "-m", *words], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert ended.stdout.startswith("usage: dlhw ls ")
