"""Output in a notebook: a table that is updated instead of a line per epoch."""

from __future__ import annotations

import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from dlhw.runtime import notebook, progress
from dlhw.runtime.notebook import table_html
from dlhw.runtime.progress import ConsoleHandler, Progress


class Handle:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, content: str) -> None:
        self.shown.append(content)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """What the kernel of a notebook shows, with a stand-in for IPython."""
    shown = Handle()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    display.HTML = str  # type: ignore[attr-defined]
    display.display = lambda content, display_id: shown  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 0.5, "train_error_percent": 7.5}


def test_only_a_kernel_is_a_notebook(monkeypatch: pytest.MonkeyPatch, handle: Handle) -> None:
    assert notebook.in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", types.SimpleNamespace)  # a terminal has no kernel
    assert not notebook.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.in_notebook()


def test_table_has_the_first_and_the_latest_epochs() -> None:
    text = table_html([row(epoch) for epoch in range(1, 21)], 30, label="best of 3 <runs>", note="1:00 left")
    assert "<caption>best of 3 &lt;runs&gt;, 20 of 30 epochs, 1:00 left</caption>" in text
    assert "<tr><th>epoch</th><th>train loss</th><th>val loss</th><th>train error (%)</th></tr>" in text
    cells = [part.partition("</td>")[0] for part in text.split("<tr><td>")[1:]]
    assert cells == ["1", *map(str, range(14, 21))]
    assert "<td>20</td><td>0.05</td><td>0.5</td><td>7.5</td>" in text


def test_epochs_are_in_the_table_and_other_lines_are_printed(
    handle: Handle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("dlhw")
    handler: Any = ConsoleHandler()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    progress.console.cache_clear()
    with Progress(3, 1) as bar:
        for epoch in range(1, 4):
            bar.step()
            bar.epoch(row(epoch))
        logger.info("something else")
    assert "3 of 3 epochs" in handle.shown[-1]
    assert capsys.readouterr().out == "something else\n"


@pytest.mark.slow
def test_notebook_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    content = nbformat.read(Path(__file__).parents[1] / "docs" / "tour.ipynb", as_version=4)
    with warnings.catch_warnings(action="ignore"):  # of the client's own event loop
        nbclient.NotebookClient(content, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [str(output.get("data", output.get("text"))) for output in outputs]
    assert any("30 of 30 epochs" in text for text in texts)
    assert any("95 % interval" in text for text in texts)
    assert sum("image/png" in text for text in texts) == 2
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
