"""Tab completion: the words that it proposes, and the scripts for the shells."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlhw import completion
from dlhw.cli.verbs import VERBS
from support.config_files import EXPERIMENTS
from support.processes import environment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two runs, a hidden folder and a file."""
    for name in ("outputs/flooding/a", "outputs/flooding/b", "own", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "own.csv").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dlhw comp", ["compare", "completion", "comparison.", "comparison="]),
        ("dlhw train optimizer=ad", ["optimizer=adagrad", "optimizer=adam", "optimizer=adamw"]),
        ("dlhw trainer.epo", ["trainer.epochs="]),
        ("dlhw -m experiment=mnist_m", ["experiment=mnist_mlp"]),
        ("dlhw resume=outputs/flooding/", ["resume=outputs/flooding/a/", "resume=outputs/flooding/b/"]),
        ("dlhw --mult", ["--multirun"]),
        ("dlhw --config-dir ow", ["own/"]),
        ("dlhw compare ow", ["own/", "own.csv"]),
        ("dlhw show la", ["last"]),
        ("dlhw compare .h", [".hidden/"]),
        ("dlhw compare --c", ["--curves"]),
        ("dlhw export --t", ["--to"]),
        ("dlhw ls --", ["--all", "--experiment", "--help", "--jobs", "--json", "--status"]),
        ("dlhw completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_last_words_of_a_line(line: str, words: list[str]) -> None:
    assert completion.completions(line) == words


def test_first_words_are_verbs_and_all_experiments_are_options() -> None:
    assert completion.completions("dlhw ")[: len(VERBS)] == list(VERBS)
    assert completion.completions("dlhw experiment=") == [f"experiment={name}" for name in EXPERIMENTS]


def test_own_experiment_in_config_dir_is_completed(folder: Path) -> None:
    (folder / "own" / "experiment").mkdir()
    (folder / "own" / "experiment" / "mine_too.yaml").write_text("# @package _global_\nname: x\n")
    assert completion.completions("dlhw --config-dir own experiment=mine") == ["experiment=mine_too"]


@pytest.mark.parametrize("line", ["dlhw zzz=3 model=", "dlhw --config-dir nowhere tr", "dlhw [ ", "dlhw --cfg"])
def test_mistake_in_a_line_prints_no_error(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    completion.main(["--words", line])
    output = capsys.readouterr()
    assert output.err == ""
    assert "Traceback" not in output.out


def test_torch_is_not_imported(folder: Path) -> None:
    code = "import sys; from dlhw import completion; completion.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for line in ("dlhw model=ml", "dlhw compare --c", "dlhw predict --t"):
        subprocess.run([sys.executable, "-c", code, "--words", line], env=environment(), check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [("dlhw optimizer=ada", ["adagrad", "adam", "adamw"]), ("dlhw predi", ["predict"]), ("dlhw zzz=1 mo", [])],
)
def test_bash_replaces_the_word_after_equals(line: str, replies: list[str]) -> None:
    words = line.replace("=", " = ").split() + [""] * line.endswith(" ")
    call = f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}"
    code = f"eval \"$('{sys.executable}' -m dlhw.completion bash)\"; compopt() {{ :; }}; {call}; _dlhw_completion; "
    ended = subprocess.run(
        ["bash", "-c", code + 'echo "${COMPREPLY[@]}"'], env=environment(), capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    assert ended.stdout.split() == replies


def test_unknown_shell_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    with pytest.raises(SystemExit):
        completion.main([])
    assert capsys.readouterr().err == "tcsh: unknown shell; expected one of bash, zsh, fish\n"


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_modules_in_the_working_directory_are_not_imported(folder: Path, shell: str) -> None:
    (folder / "argparse.py").write_text("raise SystemExit('argparse.py was imported')")
    (command,) = set(re.findall(r"[\w/.]+ -P -m dlhw\.completion --words", completion.script(shell)))
    ended = subprocess.run(
        [*shlex.split(command), "dlhw comp"], env=environment(), cwd=folder, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split()[0] == "compare"


def test_interpreter_with_a_quote_in_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/it's/python")
    words = shlex.split(completion.script("bash").partition("--words")[0].rpartition("$(")[2])
    assert words[0] == "/it's/python"
