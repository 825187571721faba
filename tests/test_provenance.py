"""The provenance of a run: its command, the versions of the software and the git revision."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dlhw
from dlhw.runtime import provenance as module
from dlhw.runtime.provenance import provenance
from support.caches import forget

CPU = torch.device("cpu")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def test_provenance_has_command_versions_device_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/dlhw", "experiment=flooding", "name=my run"])
    content = json.loads(json.dumps(provenance(CPU)))
    assert content["command"] == "python -m dlhw.train experiment=flooding 'name=my run'"
    assert content["versions"] == {
        "dlhw": dlhw.__version__,
        "torch": str(torch.__version__),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert (content["device"], content["threads"]) == ("cpu", torch.get_num_threads())


def current_revision() -> str | None:
    """Return the git revision; do not use a cached one."""
    forget()
    try:
        revision: str | None = provenance(CPU)["git_revision"]
    finally:
        forget()
    return revision


def test_revision_is_none_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert current_revision() is None


@needs_git
def test_revision_is_none_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime.py"))
    assert current_revision() is None


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> str:
    """Make a repository of a folder with one commit, and return the commit's revision."""
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return git(folder, "rev-parse", "HEAD")[:12]


@needs_git
def test_revision_of_a_modified_checkout_ends_with_a_plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime.py"))
    (tmp_path / "runtime.py").write_text("1\n")
    revision = commit(tmp_path)
    git(tmp_path, "tag", "v1")  # the revision must not be the name of the tag
    assert current_revision() == revision
    (tmp_path / "runtime.py").write_text("2\n")
    assert current_revision() == revision + "+"


@needs_git
def test_the_revision_of_own_code_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    code, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    code.mkdir()
    elsewhere.mkdir()
    (code / "mine.py").write_text("1\n")
    revision = commit(code)
    assert "own_git_revision" not in provenance(CPU)
    assert provenance(CPU, own_code=[elsewhere])["own_git_revision"] is None
    assert provenance(CPU, own_code=[elsewhere, code / "mine.py"])["own_git_revision"] == revision
    assert provenance(CPU, own_code=[code])["own_git_revision"] == revision
