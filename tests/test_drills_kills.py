"""The drill that kills runs: it notices lost signals and changed bits, and a few of its cases have no findings."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from support.drills import drill, run_drill
from support.marks import slow

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
        (signal.SIGTERM, 143, "interrupted; resume with resume=killed\n", []),
        (signal.SIGINT, 130, "interrupted; resume with resume=killed\n", []),
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


def test_case_depends_only_on_its_number_and_the_seed() -> None:
    undisturbed = resuming.Undisturbed(Path(), 2.0, 0.5, 100, {})
    own = kills.Drill(Path(), names=["run"], cold=0.0, seconds=90.0)
    drawn = [own.kill(random.Random(f"0/{number}"), undisturbed, cold=False) for number in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "options",
    [
        ("--scenarios", "run", "--only", "13", "--kills", "1"),
        slow((("--count", "25", "--seed", "1"),), name="many"),
    ],
)
def test_killed_runs_have_no_findings(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = run_drill("kills.py", *options, "--cold", "0", "--jobs", "1", at=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    assert "no findings" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "joblib", "submitit"])
def test_killed_launchers_have_no_findings(tmp_path: Path, launcher: str) -> None:
    if launcher != "torchrun":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    ended = run_drill("launchers.py", "--launchers", launcher, "--count", "3", "--jobs", "1", at=tmp_path)
    assert ended.code == 0, ended.out + ended.err
