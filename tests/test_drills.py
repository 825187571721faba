"""The drills with generated command lines and bad surroundings: their parts, and a short selection of each."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from support.drills import DRILLS, drill, run_drill
from support.processes import Process

children, commands, lines = drill("children"), drill("commands"), drill("lines")
surroundings, verdicts = drill("surroundings"), drill("verdicts")

TRACEBACK = 'Traceback (most recent call last):\n  File "/x/src/dlhw/a.py", line 3, in f\nKeyError: "b"\n'


def output_of_children(code: str, at: Path) -> list[str]:
    """Run code that may use ``children``, in a process without threads, and return the lines that it prints."""
    start = (
        f"import sys; sys.path.insert(0, {str(DRILLS)!r})\nimport json, os, signal, time\nfrom pathlib import Path\n"
    )
    start += "from children import *\nfrom command_line import *\nfrom forked import CLOSED\n"
    ended = Process("-c", f"{start}{code}", at=at).end()
    assert ended.code == 0, ended.err
    return list(ended.out.splitlines())


def in_children(code: str, at: Path) -> list[object]:
    """Run code that may use ``children``, and return the JSON values that it prints."""
    return [json.loads(line) for line in output_of_children(code, at)]


def outcome(
    code: int = 0, *, out: str = "", err: str = "", timed_out: bool = False, at: Path = Path(), words: str = ""
):
    """Return the outcome of a command that was never run."""
    command = children.Command(tuple(words.split()), at)
    return children.Outcome(command, code, out, err, 1.0, timed_out, (), False)


ENDINGS = {
    "sys.exit(3)": [3, ""],
    "sys.exit('bad')": [1, "bad"],
    "sys.exit()": [0, ""],
    "1 / 0": [1, "ZeroDivisionError: division by zero"],
    "raise KeyboardInterrupt": [-2, "KeyboardInterrupt"],
    "os.kill(os.getpid(), 15)": [-15, ""],
    "os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('x')": [120, "OSError: [Errno 28] No space left on device"],
}


@pytest.mark.slow
def test_children_end_like_the_interpreter(tmp_path: Path) -> None:
    code = f"""
for text in {list(ENDINGS)!r}:
    outcome = run(Command((), Path.cwd(), function=lambda: exec(text)))
    print(json.dumps([outcome.code, outcome.err.strip().rpartition("\\n")[2]]))
"""
    assert in_children(code, tmp_path) == list(ENDINGS.values())


def test_children_have_their_own_folder_environment_and_streams(tmp_path: Path) -> None:
    code = """
os.mkdir("there")
def show():
    print(json.dumps([os.getcwd(), os.environ.get("A"), os.environ.get("B"), sys.stderr is None]))
os.environ["B"] = "b"
command = Command((), Path("there"), function=show, env={"A": "a", "B": None}, stderr=CLOSED, shell="{} 2>&-")
print(run(command).out.strip())
print(json.dumps(Command(("a b",), Path("there"), env={"A": "a", "B": None}, shell="{} 2>&-").text()))
"""
    shell = "cd there && env -u B A=a python -m dlhw.train 'a b' 2>&-"
    assert in_children(code, tmp_path) == [[str(tmp_path / "there"), "a", None, True], shell]


def test_children_are_killed_at_their_time_limit_with_all_their_processes(tmp_path: Path) -> None:
    code = """
def wait():
    if not os.fork():
        Path("pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)
outcome = run(Command((), Path.cwd(), function=wait, seconds=1))
def runs():
    try:
        return Path(f"/proc/{Path('pid').read_text()}/stat").read_text().split()[2] not in "ZX"
    except FileNotFoundError:
        return False
deadline = time.monotonic() + 60
while runs() and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps([outcome.timed_out, outcome.code, runs()]))
"""
    assert in_children(code, tmp_path) == [[True, -9, False]]


def test_children_receive_signals_when_a_condition_holds(tmp_path: Path) -> None:
    code = """
def wait():
    Path("up").touch()
    while True:
        time.sleep(0.01)
stop = Interruption(signal.SIGTERM, when=Path("up").exists)
outcome = run(Command((), Path.cwd(), function=wait, interruptions=(stop,)))
print(json.dumps([outcome.code, len(outcome.sent)]))
"""
    assert in_children(code, tmp_path) == [[-15, 1]]


FINDINGS = [
    (outcome(1, err=TRACEBACK), "traceback: KeyError: '...' in dlhw/a.py:f"),
    (outcome(0, err="Exception ignored in: <x>\nOSError: y\n"), "Exception ignored: OSError: y"),
    (outcome(0, err="--- Logging error ---\nUnicodeEncodeError: z"), "--- Logging error ---: UnicodeEncodeError: z"),
    (outcome(3, err="x"), "exit code 3"),
    (outcome(-11), "exit code -11"),
    (outcome(1), "exit code 1 without a message"),
    (outcome(1, err="a\n" * 9), "long error: a"),
    (outcome(1, err="\x1b[31mred"), "control characters in the output: ['\\x1b']"),
    (outcome(-9, timed_out=True), "hang"),
    (outcome(1, err=TRACEBACK.replace("b", "mycode.py deliberate")), None),
    (outcome(1, err="seed=x: must be a number"), None),
    (outcome(2, err="usage"), None),
    (outcome(0, out="result"), None),
]


@pytest.mark.parametrize(("ended", "kind"), FINDINGS)
def test_verdicts_on_exit_codes_and_messages(ended: object, kind: str | None) -> None:
    assert [found for found, _ in verdicts.verdicts(ended)] == ([] if kind is None else [kind])


def test_changed_files_and_abandoned_directories_are_found(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    (tmp_path / "run" / "best.pt").write_text("weights")
    before = verdicts.snapshot(tmp_path)
    (tmp_path / "run" / "summary.json").write_text("{ }")
    (tmp_path / "run" / "best.pt").unlink()
    for name in ("begun/.hydra", "finished/.hydra", "empty", "kept"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("begun/.hydra", "finished/.hydra"):
        (tmp_path / name / "hydra.yaml").touch()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "finished" / "summary.json").touch()
    after = verdicts.snapshot(tmp_path)
    assert sorted(verdicts.changed_files(before, after)) == ["run/best.pt", "run/summary.json"]
    assert sorted(verdicts.abandoned_directories(before, after, kept=["kept"])) == ["begun", "empty"]


IGNORED = [
    ("seed=1", ["ignored key: seed"]),
    ("seed=0", []),
    ("seed=0.0", []),
    ("seed=1 seed=0", []),
    ("trainer.rates.x=3", ["ignored key: trainer.rates.x"]),
    ("trainer.rates={a:1}", []),
    ("model=cnn", ["ignored choice: model"]),
    ("model=mlp", []),
    ("seed=${nope}", []),
    ("-m seed=0,1", ["ignored key: seed", "jobs are missing"]),
]


@pytest.mark.parametrize(("words", "kinds"), IGNORED)
def test_ignored_overrides_are_found(tmp_path: Path, words: str, kinds: list[str]) -> None:
    run = tmp_path / "work" / "outputs" / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\ntrainer: {rates: {a: 1}}\n")
    (run / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: mlp}}}\n")
    (run / "summary.json").write_text('{"status": "finished"}')
    found = commands.examine(outcome(words=words, at=tmp_path / "work"), before={})
    assert [kind for kind, _ in found if not kind.startswith("created")] == kinds


def test_what_a_line_may_write_and_change() -> None:
    compare = children.Outcome(
        children.Command(("bait/sweep",), Path(), "dlhw.compare"), 0, "", "", 1.0, False, (), False
    )
    assert commands._may_change("work/bait/sweep/sweep.csv", compare)
    assert not commands._may_change("work/bait/sweep/seed=0/best.pt", compare)
    assert not commands._may_change("work/bait/run/summary.json", outcome(words="hydra.output_subdir=../bait/run"))
    assert commands._may_change("work/bait/run/metrics.csv", outcome(words="resume=bait/run trainer.epochs=2"))
    assert not commands._may_change("work/bait/run/metrics.csv", outcome(1, words="resume=bait/run"))
    assert commands._may_create("work/outputs/x", outcome())
    assert commands._may_create("work/one/x", outcome(words="hydra.run.dir=one"))
    assert not commands._may_create("work/one/x", outcome(words="seed=one"))
    assert not commands._may_create("work/~/x", outcome(words="output_dir=~/x"))
    assert not commands._may_create("home/x", outcome(words="output_dir=x"))


def test_generated_lines_are_determined_by_the_seed_and_cover_all_kinds() -> None:
    drawn = [commands.line_of(Random(f"0/{number}")) for number in range(3000)]
    assert drawn[:50] == [commands.line_of(Random(f"0/{number}")) for number in range(50)]
    assert {line.module for line in drawn} == {"dlhw.train", "dlhw.compare", "dlhw.predict"}
    text = "\n".join(" ".join(line.arguments) for line in drawn)
    for part in ("-m ", "resume=", "${", "hydra.run.dir=", "~", "++", "glob(", "--cfg", "experiment=own", "study="):
        assert part in text, part
    assert all(option in text for option in lines.groups()["optimizer"])


def test_misspelt_words_differ_in_most_cases() -> None:
    random = Random(0)
    assert sum(lines.misspelt(random, "optimizer.lr") != "optimizer.lr" for _ in range(100)) > 60


def test_keys_of_an_option_include_those_that_it_inherits() -> None:
    assert lines.option_values("model", "picture_cnn_bn").keys() == lines.option_values("model", "cnn").keys()
    assert lines.option_values("optimizer", "momentum")["momentum"] == 0.9


def test_a_case_can_be_repeated_alone(tmp_path: Path) -> None:
    ended = run_drill("commands.py", "--only", "1", "--verbose", at=tmp_path)
    assert commands.text_of(commands.line_of(Random("0/1"))) in ended.out


@pytest.mark.slow
def test_generated_command_lines(tmp_path: Path) -> None:
    ended = run_drill("commands.py", "--count", "20", "--jobs", "1", "--seconds", "600", at=tmp_path)
    assert "20 cases" in ended.out
    assert ended.code == 0, ended.out


@pytest.mark.thorough
def test_some_surroundings(tmp_path: Path) -> None:
    names = ("outputs is a file", "closed stdout", "stdout closed after 1", "files of at most 200")
    options = ["--only", *names, "--programs", "run", "help", "--seconds", "600"]
    ended = run_drill("surroundings.py", *options, at=tmp_path)
    assert ended.code == 0, ended.out


def test_lost_and_broken_results_are_found_in_surroundings(tmp_path: Path) -> None:
    summary = tmp_path / "bait" / "run" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text('{"status": "finished"}')
    before = verdicts.snapshot(tmp_path)
    usual = surroundings.surroundings()["usual"]

    def kinds(code: int = 0) -> list[str]:
        return [
            kind for kind, _ in surroundings.examine(outcome(code, err="x", at=tmp_path), "run", usual, before=before)
        ]

    assert kinds() == ["exit code 0 without a summary.json"]
    assert kinds(1) == ["exit code 1"]
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "summary.json").write_text("{")
    summary.write_text("{}")
    assert kinds() == ["changed bait/run/summary.json", "lost bait/run/summary.json", "broken summary.json"]


PLANTED = """
def fail():
    raise ValueError("planted")

def steps(case):
    outcome = yield Command((), at=case.directory, function=fail if case.name == "1" else int)
    for kind, detail in verdicts(outcome):
        case.find(kind, detail)

from cases import *
from verdicts import verdicts
parser = options_parser("", count=3, seconds=60)
directories = []
code = drill(parser, parser.parse_args([]), lambda directory: directories.append(directory) or steps)
print(json.dumps([code, directories[0].exists()]))
"""


def test_drill_reports_a_planted_traceback_and_has_exit_code_1(tmp_path: Path) -> None:
    *report, result = output_of_children(PLANTED, tmp_path)
    assert json.loads(result) == [1, False]
    assert report[-3:-1] == ["1 x traceback: ValueError: planted", "    "]
    assert report[-1].endswith(" --seed 0 --verbose --only 1")


def test_every_surrounding_has_expected_exit_codes() -> None:
    for name, surrounding in surroundings.surroundings().items():
        for program in surroundings.PROGRAMS:
            assert surroundings.expected_codes(program, surrounding), (name, program)
