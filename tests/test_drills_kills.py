"""The drill that kills runs: it notices lost signals and changed bits, and a few of its cases have no findings."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from support.drills import drill, run_drill
from support.marks import thorough

cases, children, fingerprints = drill("cases"), drill("children"), drill("fingerprints")
kills, launchers, moments, resuming = drill("kills"), drill("launchers"), drill("moments"), drill("resuming")


def findings_of_kill(
    sent: signal.Signals, code: int, printed: str, *, seconds_ago: float = 1.0, late: bool = False
) -> list[str]:
    """Return the kinds of findings for a run that got a signal while training, ended with a code and printed a text."""
    case = cases.Case("0", random.Random(0), Path())
    outcome = children.Outcome(children.Command((), at=Path()), code, "", "", 2.0, False, (), False)
    text = f"epoch 1\n{moments.MARK}{time.monotonic() - seconds_ago} training\n{printed}"
    kill = kills.Kill((sent,), False, after=1.0)
    kills.check_killed(case, outcome, kill, text, late=late, most_lines=kills.MOST_LINES)
    return [kind for kind, _ in case.findings]


TRACEBACK = """Traceback (most recent call last):
  File "/x/dlhw/train.py", line 31, in main
    x
KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("sent", "code", "printed", "kinds"),
    [
        (signal.SIGTERM, 143, "interrupted; next: dlhw resume=killed\n", []),
        (signal.SIGINT, 130, "interrupted; next: dlhw resume=killed\n", []),
        (signal.SIGKILL, -9, "", []),
        (signal.SIGTERM, 0, "epoch 2\n", ["lost interrupt"]),
        (signal.SIGINT, 1, "flag_override failed\n", ["lost interrupt"]),
        (signal.SIGINT, 130, TRACEBACK, ["traceback"]),
        (signal.SIGTERM, 143, "line\n" * 4, ["message"]),
    ],
)
def test_drill_judges_how_a_run_ends_after_a_signal(
    sent: signal.Signals, code: int, printed: str, kinds: list[str]
) -> None:
    assert findings_of_kill(sent, code, printed) == kinds


ELASTIC = """Traceback (most recent call last):
  File "/x/torch/distributed/run.py", line 991, in main
    run(args)
torch.distributed.elastic.multiprocessing.api.SignalException: Process 7 got signal: 15
"""
IMPORTING = """Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/x/src/dlhw/train.py", line 3, in <module>
    import x
KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("launcher", "sent", "ended", "kinds"),
    [
        ("torchrun", (signal.SIGTERM, "first process"), (1, ELASTIC), []),
        ("torchrun", (signal.SIGTERM, "group"), (0, ""), ["exit code"]),
        ("torchrun", (signal.SIGINT, "worker"), (0, ""), ["exit code"]),
        ("torchrun", (signal.SIGKILL, "group"), (-9, ""), []),
        ("torchrun", (signal.SIGTERM, "group"), (1, f"{TRACEBACK}{ELASTIC}"), ["traceback"]),
        ("torchrun", (signal.SIGTERM, "group"), (1, ELASTIC.replace("/torch/distributed/", "/dlhw/")), ["traceback"]),
        ("torchrun", (signal.SIGINT, "group"), (1, f"{IMPORTING}{ELASTIC}"), []),
        ("joblib", (signal.SIGINT, "first process"), (130, "interrupted\n"), []),
        ("joblib", (signal.SIGINT, "first process"), (1, "failed\n"), ["exit code"]),
        ("joblib", (signal.SIGTERM, "group"), (130, "interrupted\n"), ["exit code"]),
        ("joblib", (signal.SIGTERM, "first process"), (143, ELASTIC), ["traceback"]),
        ("submitit", (signal.SIGINT, "group"), (130, "Exception ignored in: <x>\n"), ["traceback"]),
    ],
)
def test_drill_judges_how_a_launcher_ends_after_a_signal(
    tmp_path: Path, launcher: str, sent: tuple[signal.Signals, str], ended: tuple[int, str], kinds: list[str]
) -> None:
    code, printed = ended
    (tmp_path / "output").write_text(f"epoch 1\n{moments.MARK}{time.monotonic()} training\n{printed}")
    case = cases.Case("0", random.Random(0), tmp_path)
    outcome = children.Outcome(children.Command((), at=tmp_path), code, "", "", 2.0, False, (), False)
    launchers.check_killed(case, outcome, launcher, *sent, finished=False)
    assert [kind for kind, _ in case.findings] == kinds


def test_launcher_that_had_finished_before_the_signal_may_have_exit_code_0(tmp_path: Path) -> None:
    (tmp_path / "output").write_text(f"{moments.MARK}{time.monotonic()} ending\n")
    case = cases.Case("0", random.Random(0), tmp_path)
    outcome = children.Outcome(children.Command((), at=tmp_path), 0, "", "", 2.0, False, (), False)
    launchers.check_killed(case, outcome, "torchrun", signal.SIGTERM, "group", finished=True)
    assert case.findings == []


def test_signal_just_before_the_end_may_have_no_effect() -> None:
    assert findings_of_kill(signal.SIGTERM, 0, "", seconds_ago=0.1, late=True) == []
    assert findings_of_kill(signal.SIGTERM, 0, "", seconds_ago=0.1, late=False) == ["lost interrupt"]


def test_fingerprint_notices_one_bit(tmp_path: Path) -> None:
    results = []
    for name, value in (("one", 0.1), ("same", 0.1), ("other", 0.1 + 2**-27)):
        directory = tmp_path / name
        directory.mkdir()
        torch.save({"model": {"weight": torch.full((3, 2), value)}, "rows": [{"epoch": 1}]}, directory / "last.pt")
        (directory / "summary.json").write_text(f'{{"status": "finished", "seconds": {len(results)}}}')
        results.append(fingerprints.fingerprint(directory))
    assert fingerprints.differences(results[0], results[1]) == []
    assert fingerprints.differences(results[0], results[2]) == ["last.pt"]


def test_results_that_differ_and_partial_files_are_found(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "metrics.csv").write_text("epoch,val_loss\n1,0.5\n")
    undisturbed = resuming.Undisturbed(killed, 2.0, 0.5, 100, fingerprints.fingerprint(killed))
    case = cases.Case("0", random.Random(0), tmp_path)
    resuming.check_results(case, undisturbed)
    assert case.findings == []
    (killed / "metrics.csv").write_text("epoch,val_loss\n1,0.6\n")
    (killed / "best.pt.partial").touch()
    resuming.check_results(case, undisturbed)
    assert [kind for kind, _ in case.findings] == ["wrong result", "leftover file"]


def test_case_depends_only_on_its_number_and_the_seed() -> None:
    undisturbed = resuming.Undisturbed(Path(), 2.0, 0.5, 100, {})
    own = kills.Drill(Path(), names=["run"], cold=0.0, seconds=90.0)
    drawn = [own.kill(random.Random(f"0/{number}"), undisturbed, cold=False) for number in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "options",
    [
        ("--scenarios", "run", "--only", "13", "--kills", "1"),
        thorough((("--count", "12", "--seed", "1"),), name="many"),
    ],
)
def test_killed_runs_have_no_findings(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = run_drill("kills.py", *options, "--cold", "0", "--jobs", "1", at=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    assert "no findings" in ended.out


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["torchrun", "joblib", "submitit"])
def test_killed_launchers_have_no_findings(tmp_path: Path, launcher: str) -> None:
    if launcher != "torchrun":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    ended = run_drill("launchers.py", "--launchers", launcher, "--count", "1", "--jobs", "1", at=tmp_path)
    assert ended.code == 0, ended.out + ended.err
