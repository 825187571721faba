"""Output in a Jupyter notebook: a table of epochs that is updated in place."""

from __future__ import annotations

import html
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 8
"""Epochs in the table: the first, and the latest ones."""
EVERY_SECONDS = 0.3


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class EpochTable:
    """Shows the rows of epochs, at most every 0.3 seconds; :meth:`close` shows the latest."""

    def __init__(self, epochs: int, *, label: str = "") -> None:
        display: Any = importlib.import_module("IPython.display")
        self._html, self._epochs, self._label = display.HTML, epochs, label
        self._rows: list[Mapping[str, float]] = []
        self._shown = time.monotonic()
        self._handle: Any = display.display(self._html(""), display_id=True)

    def add(self, row: Mapping[str, float], *, left: str) -> None:
        """Add the row of a finished epoch; ``left`` is the time that the rest will take."""
        self._rows.append(row)
        if time.monotonic() - self._shown >= EVERY_SECONDS:
            self._show(f"{left} left")

    def close(self) -> None:
        """Show all that was added."""
        self._show("")

    def _show(self, note: str) -> None:
        self._shown = time.monotonic()
        if self._rows:
            self._handle.update(self._html(table_html(self._rows, self._epochs, label=self._label, note=note)))


def table_html(rows: Sequence[Mapping[str, float]], epochs: int, *, label: str = "", note: str = "") -> str:
    """Return an HTML table with loss and error of the first and the latest epochs."""
    columns = {
        f"{part}_{name}": f"{part} {name.removesuffix('_percent')}{' (%)' if name.endswith('_percent') else ''}"
        for name in ("loss", "error_percent")
        for part in ("train", "val")
        if f"{part}_{name}" in rows[0]
    }
    shown = rows if len(rows) <= SHOWN else [rows[0], *rows[1 - SHOWN :]]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("epoch", *columns.values()))
    body = "".join(
        f"<tr><td>{row['epoch']:.0f}</td>{''.join(f'<td>{row[name]:.4g}</td>' for name in columns)}</tr>"
        for row in shown
    )
    parts = [label, f"{rows[-1]['epoch']:.0f} of {epochs} epochs", note]
    caption = html.escape(", ".join(filter(None, parts)))
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"
