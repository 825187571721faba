"""Run directories: how they are claimed, discarded and named."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlhw.errors import UsageError
from dlhw.runtime.paths import is_reserved
from dlhw.storage.record import Record, claim_directory, directory_name, release_directories


def test_free_name_is_used_unchanged(tmp_path: Path) -> None:
    requested = tmp_path / "outputs" / "run"
    assert claim_directory(requested, exact=False) == requested
    assert requested.is_dir()


def test_existing_name_gets_a_number(tmp_path: Path) -> None:
    names = [claim_directory(tmp_path / "run", exact=False).name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_concurrent_claims_get_different_directories(tmp_path: Path) -> None:
    count = 16
    requested = tmp_path / "outputs" / "train" / "run"
    barrier, claimed = threading.Barrier(count), []

    def claim() -> None:
        barrier.wait()
        claimed.append(claim_directory(requested, exact=False))

    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in claimed) == sorted(["run", *(f"run-{n}" for n in range(2, count + 1))])
    assert set(requested.parent.iterdir()) == set(claimed)


def test_existing_file_gives_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert claim_directory(tmp_path / "run", exact=False).name == "run-2"


def test_exact_name_of_an_existing_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UsageError, match=r"run: already exists, .* resume="):
        claim_directory(tmp_path / "run", exact=True)


def test_exact_name_may_be_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert claim_directory(tmp_path / "run", exact=True) == tmp_path / "run"


def test_exact_name_may_be_a_directory_in_which_a_killed_process_left_nothing_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / "run.log").touch()
    assert claim_directory(tmp_path / "run", exact=True) == tmp_path / "run"


def test_directory_of_a_run_that_another_process_begins_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with Record(tmp_path / "run").locked(), pytest.raises(UsageError, match="another process is training this run"):
        claim_directory(tmp_path / "run", exact=True)


def test_folder_with_other_files_is_not_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").touch()
    with pytest.raises(UsageError, match=r"run: is not empty, and runs are never written into other files"):
        claim_directory(tmp_path / "run", exact=True)


@pytest.mark.parametrize("exact", [False, True])
def test_broken_link_in_place_of_the_output_directory_is_an_error(tmp_path: Path, exact: bool) -> None:
    (tmp_path / "outputs").symlink_to("/not/mounted")
    with pytest.raises(UsageError, match=r"outputs: a file or a broken link; expected a directory for runs"):
        claim_directory(tmp_path / "outputs" / "run", exact=exact)


def test_release_removes_only_directories_without_a_run(tmp_path: Path) -> None:
    for name in ("empty", "composed", "begun"):
        (tmp_path / "outputs" / name / ".hydra").mkdir(parents=True)
    (tmp_path / "outputs" / "begun" / "config.yaml").touch()
    for name in ("empty", "composed", "begun", "missing"):
        release_directories([tmp_path / "outputs" / name, tmp_path / "outputs"])
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["begun"]


@pytest.mark.parametrize("exact", [False, True])
def test_path_below_a_file_is_an_error(tmp_path: Path, exact: bool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: a file or a broken link; expected a directory for runs"):
        claim_directory(tmp_path / "file" / "run", exact=exact)


def test_discard_removes_a_run_without_results(tmp_path: Path) -> None:
    path = tmp_path / "experiment" / "run"
    path.mkdir(parents=True)
    Record(path).write_config("seed: 0\n", new=True)
    (path / "train.log").write_text("x")
    Record(path).discard()
    assert list((tmp_path / "experiment").iterdir()) == []


def test_discard_keeps_other_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "experiment" / name).mkdir(parents=True)
    Record(tmp_path / "experiment" / "one").discard()
    assert [path.name for path in (tmp_path / "experiment").iterdir()] == ["two"]


@pytest.mark.parametrize("name", ["metrics.csv", "last.pt", "summary.json"])
def test_discard_keeps_a_run_with_results(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / name).write_text("x")
    Record(path).write_config("seed: 0\n", new=True)
    Record(path).discard()
    assert sorted(file.name for file in path.iterdir()) == sorted(["config.yaml", name])


FORBIDDEN = set('<>:"/\\|?*\0') | {chr(code) for code in range(32)}  # by Windows; other systems forbid fewer
KEYS = st.sampled_from(["seed", "b", "optimizer.lr", "+optimizer.momentum_decay", "model"])
PLAIN_VALUES = st.integers(-1000, 1000).map(str) | st.floats(1e-6, 1e6).map(repr) | st.sampled_from(["mlp", "cnn"])
OVERRIDES = st.dictionaries(KEYS, PLAIN_VALUES, min_size=1, max_size=5).map(
    lambda chosen: [f"{key}={value}" for key, value in chosen.items()]
)


@given(st.lists(st.text(max_size=60), max_size=6), st.integers(10, 100))
def test_directory_names_are_safe_and_short(overrides: list[str], longest: int) -> None:
    name = directory_name(overrides, longest=longest)
    assert 0 < len(name) <= longest
    assert not FORBIDDEN & set(name)
    assert not name.startswith(".")
    assert not name.endswith((".", " "))
    assert not is_reserved(name)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(OVERRIDES, OVERRIDES)
def test_directory_names_of_distinct_jobs_are_distinct(one: list[str], other: list[str]) -> None:
    plain = [[line.removeprefix("+") for line in lines] for lines in (one, other)]
    assert (directory_name(one) == directory_name(other)) == (plain[0] == plain[1])


def test_long_directory_names_are_shortened_and_stay_distinct() -> None:
    one, other = (directory_name([f"model.hidden={'1' * 200}{end}", "seed=0"]) for end in "12")
    assert one != other
    for name in (one, other):
        assert re.fullmatch(r"seed=0-[0-9a-f]{8}", name)
    many = [f"model.channels={n}" for n in range(100)]
    assert len(directory_name(many)) <= 120
    assert re.fullmatch(r"(model\.channels=\d+,)*model\.channels=\d+-[0-9a-f]{8}", directory_name(many))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["b=0.05", "seed=3"], "b=0.05,seed=3"),
        (["experiment=flooding", "b=0.05"], "experiment=flooding,b=0.05"),
        (["+optimizer.weight_decay=1e-4"], "optimizer.weight_decay=1e-4"),
        (["model.hidden=[500,200]"], "model.hidden=_500,200-c97e5ed5"),
        (["data_dir=/tmp/my data"], "data_dir=_tmp_my_data-f983826f"),
        (["aux.b=1"], "_aux.b=1"),
        ([], "defaults"),
    ],
    ids=str,
)
def test_directory_name_examples(overrides: list[str], expected: str) -> None:
    assert directory_name(overrides) == expected


def test_release_keeps_a_run_that_another_process_begins_after_the_first_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)

    @contextlib.contextmanager
    def begun_meanwhile(record: Record) -> Iterator[None]:
        record.write_config("seed: 0\n", new=True)
        yield

    monkeypatch.setattr(Record, "locked", begun_meanwhile)
    release_directories([tmp_path / "run"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".hydra", "config.yaml"]


def test_release_removes_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    release_directories([tmp_path / "run"])
    assert list(tmp_path.iterdir()) == []


def test_release_keeps_a_directory_that_another_process_has_locked(tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    with Record(tmp_path / "run").locked():
        release_directories([tmp_path / "run"])
    assert (tmp_path / "run" / ".hydra").is_dir()
