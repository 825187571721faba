"""Training with several processes has the results and the files of one process; unsupported settings are errors."""

from __future__ import annotations

import contextlib
import csv
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dlhw import train
from dlhw.cli import assembly
from dlhw.errors import TrainingFailed, UsageError
from dlhw.runtime import processes
from dlhw.storage.record import Record
from dlhw.training.objective import flooded
from support.commands import dlhw, start
from support.composing import compose
from support.processes import Ended, Process, environment

BASE = ("trainer.device=cpu", "trainer.precision=fp64", "trainer.epochs=2", "trainer.train_metrics=evaluated")
RUN = (*BASE, "model.hidden=[8]", "optimizer=adam", "trainer.batch_size=281", "regularization.flood=2.0",
       "regularization.l2=0.01", "trainer.clip_norm=0.5")  # fmt: skip
"""Five batches, the last with 8 samples. The flood level is between the losses of the first and the last epoch."""


@pytest.fixture
def set_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``set_rank(1, 3)`` sets the environment variables of torchrun for the second of three processes."""

    def set_variables(rank: int, count: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", str(count))
        monkeypatch.setenv("RANK", str(rank))

    return set_variables


def test_single_process_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # set by another launcher
    rows, model, loss = torch.arange(6).view(2, 3), nn.Linear(2, 2), nn.functional.cross_entropy
    assert (processes.world_size(), processes.rank(), processes.process_key()) == (1, 0, ())
    assert processes.local_part(rows) is rows
    assert processes.sum_over_processes(rows) is rows
    assert processes.whole_batch_loss(loss) is loss
    assert processes.data_parallel(model, unsynchronized=[]) is model
    with processes.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:3227.", TrainingFailed),
        ("[gloo/transport/tcp/pair.cc:598] Read error [127.0.0.1]:3227: Connection reset by peer", TrainingFailed),
        ("the server of the data: connection reset by peer", RuntimeError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_process_explains_that_another_one_ended(
    monkeypatch: pytest.MonkeyPatch, set_rank: Callable[[int, int], None], message: str, kind: type[Exception]
) -> None:
    set_rank(0, 2)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *arguments, **options: None)
    with pytest.raises(RuntimeError) as error, processes.process_group(torch.device("cpu")):
        raise RuntimeError(message)
    assert error.type is kind


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_local_parts_make_up_the_batch_and_differ_by_at_most_one_sample(
    set_rank: Callable[[int, int], None], count: int, size: int
) -> None:
    rows = torch.arange(2 * size).view(2, size)
    shares = []
    for rank in range(count):
        set_rank(rank, count)
        shares.append(processes.local_part(rows))
    assert sorted(torch.cat(shares, 1).flatten().tolist()) == rows.flatten().tolist()
    assert max(part.shape[1] for part in shares) - min(part.shape[1] for part in shares) <= 1
    assert all(len(part) == 2 for part in shares)


def test_process_keys_differ_and_that_of_rank_0_is_empty(set_rank: Callable[[int, int], None]) -> None:
    keys = []
    for rank in range(3):
        set_rank(rank, 3)
        keys.append(processes.process_key())
    assert keys[0] == ()
    assert len(set(keys)) == 3


@pytest.mark.parametrize("sizes", [(3, 3), (4, 3), (1, 0), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("flood", [0.0, 10.0])
def test_loss_and_gradient_equal_those_of_the_whole_batch(
    set_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], flood: float
) -> None:
    """The test averages the gradients over the processes, as DistributedDataParallel does."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 4, generator=draw, dtype=torch.float64)
    y = torch.arange(len(x)) % 3
    weight = torch.randn(4, 3, generator=draw, dtype=torch.float64).requires_grad_()
    whole = flooded(nn.functional.cross_entropy(x @ weight, y), flood)
    (expected,) = torch.autograd.grad(whole, weight)

    parts_of_x, parts_of_y = x.split(sizes), y.split(sizes)
    sums = [nn.functional.cross_entropy(x_part @ weight.detach(), y_part, reduction="sum")
            for x_part, y_part in zip(parts_of_x, parts_of_y, strict=True)]  # fmt: skip
    global_sums = torch.stack([torch.stack(sums).sum(), torch.tensor(float(len(x)), dtype=torch.float64)])
    local_sums: list[Tensor] = []

    def total(values: Tensor) -> Tensor:
        local_sums.append(values)
        return global_sums

    monkeypatch.setattr(processes, "sum_over_processes", total)
    gradients = []
    for rank in range(len(sizes)):
        set_rank(rank, len(sizes))
        loss = processes.whole_batch_loss(nn.functional.cross_entropy)
        value = flooded(loss(parts_of_x[rank] @ weight, parts_of_y[rank]), flood)
        torch.testing.assert_close(value, whole, rtol=1e-13, atol=0)
        gradients.append(torch.autograd.grad(value, weight)[0])
    torch.testing.assert_close(torch.stack(local_sums).sum(0), global_sums)
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rank", [0, 1])
def test_sweep_is_an_error(set_rank: Callable[[int, int], None], tmp_path: Path, rank: int) -> None:
    set_rank(rank, 2)
    result = dlhw("-m", *RUN, "seed=0,1", at=tmp_path)
    assert (result.code, result.lines) == (
        1,
        ["torchrun: invalid with -m, because it trains a single run; start the sweep without torchrun"],
    )
    assert not list(tmp_path.iterdir())


def test_study_is_an_error(set_rank: Callable[[int, int], None], tmp_path: Path) -> None:
    set_rank(0, 2)
    result = dlhw("experiment=jacobian", at=tmp_path)
    assert (result.code, result.lines) == (
        1,
        ["torchrun: invalid for a study, which runs in a single process; start it without torchrun"],
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.batch_size=1131"],
            "trainer.batch_size=1131: with 1132 samples, the last batch has 1 for 2 processes; choose another size",
        ),
        (
            ["trainer.compile=true"],
            "torchrun: does not support trainer.compile or trainer.cuda_graphs",
        ),
        (
            ["trainer.cuda_graphs=true"],
            "torchrun: does not support trainer.compile or trainer.cuda_graphs",
        ),
    ],
)
def test_unsupported_setting_is_an_error(
    set_rank: Callable[[int, int], None], overrides: Sequence[str], message: str
) -> None:
    set_rank(1, 2)
    with pytest.raises(UsageError) as raised:
        assembly.assemble(compose(*BASE, *overrides))
    assert str(raised.value) == message


def test_training_batch_norm_on_a_cpu_is_an_error(set_rank: Callable[[int, int], None]) -> None:
    set_rank(0, 2)
    with pytest.raises(UsageError, match=r"^torchrun: batch norm needs the statistics of whole batches"):
        processes.data_parallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), unsynchronized=[])


def torchrun(*overrides: str, at: Path) -> Ended:
    """Start two processes with the environment variables of torchrun. Return how the first one ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with temporary_files() as temporary:
        ranks = [
            start(*overrides, at=at, **shared, **temporary, RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
            for rank in range(2)
        ]
        try:
            first, second = (process.end() for process in ranks)
        finally:
            for process in ranks:
                process.kill()
    assert first.code == second.code, second.err
    return first


@contextlib.contextmanager
def temporary_files() -> Iterator[dict[str, str]]:
    """Set TMPDIR for processes; then assert that none of dlhw's temporary directories is left.

    The path is short: workers create sockets below it, whose paths have at most 107 characters.
    """
    with tempfile.TemporaryDirectory() as directory:
        yield {"TMPDIR": directory}
        assert not list(Path(directory).glob("dlhw-*"))


def rows(directory: Path) -> list[list[float]]:
    """Return the values in metrics.csv, one list per epoch."""
    with (directory / "metrics.csv").open() as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


def assert_equals_one_process(directory: Path, single: Path, *overrides: str) -> None:
    """Assert that metrics.csv equals that of one process to nine of its ten digits; train it in ``single``."""
    single.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlhw.cli.lifecycle.finish", lambda *arguments: None)
        train.run(compose(*overrides), Record(single))
    one, other = torch.tensor(rows(directory)), torch.tensor(rows(single))
    torch.testing.assert_close(one, other, rtol=2e-9, atol=1e-9)


def test_two_processes_have_the_results_and_files_of_one(tmp_path: Path) -> None:
    ended = torchrun(*RUN, at=tmp_path)
    assert ended.code == 0, ended.err
    (directory,) = (tmp_path / "outputs" / "train").iterdir()
    assert_equals_one_process(directory, tmp_path / "single", *RUN)
    losses = [row[3] for row in rows(directory)]
    assert losses[0] > losses[-1]
    assert len([line for line in ended.lines if line.startswith("epoch 2/2")]) == 1
    assert {path.name for path in directory.iterdir()} >= {"best.pt", "last.pt", "summary.json", "curves.png"}


@pytest.mark.slow
def test_torchrun_command_starts_two_processes(tmp_path: Path) -> None:
    command = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "dlhw.train")
    with temporary_files() as temporary:
        ended = Process(*command, *RUN, at=tmp_path, env=environment(**temporary), cold=True).end()
    assert ended.code == 0, ended.err
    (directory,) = (tmp_path / "outputs" / "train").iterdir()
    assert_equals_one_process(directory, tmp_path / "single", *RUN)
    assert len([line for line in ended.lines if line.startswith("epoch 2/2")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=cnn", "model.channels=[3,4]", "model.batch_norm=true", "trainer.trains=head", "probe=layers"),
        ("model=cnn", "model.channels=[3,4]", "trainer.trains=head", "augmentation=strong", "trainer.frozen_views=2"),
        ("model=cnn", "model.channels=[3,4]", "augmentation=shift", "augmentation.workers=2",
         "trainer.channels_last=true", "trainer.probe_every_epochs=1", "probe=layers"),
    ],
    ids=["frozen once", "frozen views", "augmented, channels last, probed"],
)  # fmt: skip
def test_two_processes_have_the_results_of_one_with_other_settings(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    lines = (*BASE, "trainer.batch_size=281", *overrides)
    ended = torchrun(*lines, at=tmp_path)
    assert ended.code == 0, ended.err
    (directory,) = (tmp_path / "outputs" / "train").iterdir()
    assert_equals_one_process(directory, tmp_path / "single", *lines)


@pytest.mark.slow
def test_two_processes_resume_a_run_like_one_process(tmp_path: Path) -> None:
    first = torchrun(*RUN, "hydra.run.dir=here", at=tmp_path)
    assert first.code == 0, first.err
    second = torchrun("resume=here", "trainer.epochs=4", at=tmp_path)
    assert second.code == 0, second.err
    assert_equals_one_process(tmp_path / "here", tmp_path / "single", *RUN, "trainer.epochs=4")
    again = torchrun("resume=here", "trainer.epochs=4", at=tmp_path)
    assert again.code == 1
    assert "resume=" in again.err
    assert "already finished after 4 epochs" in again.err
