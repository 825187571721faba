"""The test support itself: fast composition of configs, and forked processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dlhw.cli import program
from dlhw.errors import UsageError
from support.composing import compose
from support.marks import slow
from support.processes import Ended, Process

LINES = [
    "",
    "seed=3 model.hidden=[] optimizer.lr=1e-3",
    "experiment=flooding b=0.3 trainer.device=cpu trainer.epochs=7",
    "optimizer=adam optimizer.betas=[0.5,0.9] model.hidden=[5,4]",
    "optimizer.lr=0.2 optimizer=adam",
    "study=jacobian study.depths=[3]",
    "trainer.clip_norm=null trainer.trains=head model.batch_norm=true",
    "model.activation=Tanh trainer.rates={a:1}",
]


@pytest.mark.parametrize("line", LINES)
def test_fast_compose_equals_program_compose(line: str) -> None:
    cfg, expected = compose(*line.split()), program.compose(*line.split())
    assert cfg == expected
    cfg.trainer.epochs = 99
    assert compose(*line.split()) == expected


@pytest.mark.parametrize("line", ["optimizer.lrr=3", *map(slow, ["optimizer.lr=1,2", "lr=3", "optimizer.lr.x=3"])])
def test_fast_compose_raises_the_errors_of_program_compose(line: str) -> None:
    messages = []
    for function in (compose, program.compose):
        with pytest.raises(UsageError) as raised:
            function(line)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("cold", [True, False])
def test_process_has_its_own_id_arguments_folder_and_environment(tmp_path: Path, cold: bool) -> None:
    code = "import os, sys; print(os.getpid(), os.getcwd(), sys.argv, os.environ['X']); sys.exit('bad')"
    process = Process("-c", code, "a b", at=tmp_path, env={"X": "y"}, cold=cold)
    assert process.pid != os.getpid()
    assert process.end() == Ended(1, f"{process.pid} {tmp_path} ['-c', 'a b'] y\n", "bad\n")


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 3)]
)
def test_process_receives_signals(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    waiting = "try:\n  print('up', flush=True)\n  while True: time.sleep(0.01)\nexcept KeyboardInterrupt: os._exit(3)"
    process = Process("-c", f"import os, time\n{waiting}", at=tmp_path)
    process.until(lambda: process.out)
    assert process.poll() is None
    process.send_signal(sent)
    assert process.wait() == code
    process.send_signal(sent)  # a process that has ended is ignored
