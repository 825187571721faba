"""The card of a run or sweep: what it did, its results, and the commands that go on from there."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlhw.runtime.paths import printable, shell_line
from dlhw.runtime.progress import clock_time
from dlhw.runtime.wording import metric_text
from dlhw.storage.listing import Entry
from dlhw.views.comparison.settings import overrides_of

WIDTH = 80
_INDENT = 12
_COMMANDS = ("command", "next", "or")
"""Labels of lines that are not wrapped, because they are copied."""
Lines = list[tuple[str, str]]


def card(entry: Entry) -> Lines:
    """Return the lines of the card: a label and a text each."""
    return list(_sweep_lines(entry) if entry.kind == "sweep" else _run_lines(entry))


def as_text(lines: Lines) -> str:
    """Return the card as text of at most 80 columns, unless a word is longer."""
    return "\n".join(
        f"{label:<{_INDENT}}{text}" if label in _COMMANDS else _wrapped(f"{label:<{_INDENT}}", text)
        for label, text in lines
    )


def as_html(lines: Lines) -> str:
    """Return the card as an HTML table, for notebooks."""
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(label)}</th><td style="text-align:left">{html.escape(text)}</td>'
        "</tr>"
        for label, text in lines
    )
    return f"<table>{rows}</table>"


def _wrapped(start: str, text: str) -> str:
    """Return a text of at most 80 columns, without a line break between a number and its percent sign."""
    lines = textwrap.wrap(
        text.replace(" %", "\N{NO-BREAK SPACE}%"),
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _run_lines(entry: Entry) -> Iterator[tuple[str, str]]:
    summary = entry.summary
    yield "run", f"{entry.experiment}, {_status(entry)}"
    yield "directory", printable(entry.path)
    yield from _provenance(entry)
    if data := summary.get("data"):
        yield "data", _data(data)
    if (parameters := summary.get("parameters")) is not None:
        yield "model", f"{parameters:,} parameters"
    if (seconds := summary.get("seconds")) is not None:
        yield "time", f"{clock_time(seconds)} on {summary.get('device')}, {summary.get('threads')} threads"
    for name in ("best", "final"):
        if row := summary.get(name):
            yield f"{name} epoch", _results(row)
    if not summary.get("best") and entry.epochs:
        yield "epochs", f"{entry.epochs} finished"
    numbers = {name: value for name, value in (summary.get("numbers") or {}).items() if isinstance(value, int | float)}
    if numbers:
        yield "results", ", ".join(f"{name} = {value:.4g}" for name, value in numbers.items())
    yield from _files(entry.path)
    yield from zip(_COMMANDS[1:], _next_of_run(entry), strict=False)


def _sweep_lines(entry: Entry) -> Iterator[tuple[str, str]]:
    summary = entry.summary
    yield "sweep", f"{entry.experiment}, {_status(entry)}"
    yield "directory", printable(entry.path)
    yield from _provenance(entry)
    if "jobs" in summary:
        counts = ", ".join(f"{summary[name]} {name}" for name in ("finished", "failed", "unfinished") if summary[name])
        yield "runs", f"{summary['jobs']} ({counts}), {summary['settings']} settings"
    winner = summary.get("winner")
    if winner:
        means = ", ".join(
            f"{metric_text(name, value['mean'])}" + (f" ± {value['sd']:.2g}" if value.get("sd") is not None else "")
            for name, value in winner.items()
            if isinstance(value, Mapping) and "mean" in value
        )
        yield "best", f"{winner['setting']} (n = {winner['n']}): {means}"
        if tied := summary.get("tied"):
            yield "tied", "; ".join(tied)
    elif reason := summary.get("no_winner"):
        yield "best", f"none: {reason}"
    if (seconds := summary.get("seconds")) is not None:
        yield "time", clock_time(seconds)
    yield from _files(entry.path)
    directory = shell_line([str(entry.path)])
    resume = [f"dlhw resume={directory}"] if entry.status != "finished" else []
    yield from zip(_COMMANDS[1:], [*resume, f"dlhw compare {directory}"], strict=False)


def _status(entry: Entry) -> str:
    reason = entry.summary.get("reason")
    return f"{entry.status}, started {entry.started:%Y-%m-%d %H:%M}" + (f": {reason}" if reason else "")


def _provenance(entry: Entry) -> Iterator[tuple[str, str]]:
    command = entry.summary.get("command", "")
    if command:
        yield "command", command
    overrides = " ".join(f"{key}={value}" for key, value in overrides_of(entry.path, default=()).items())
    if not command.endswith(overrides):  # a run of a sweep
        yield "overrides", overrides
    revisions = {"dlhw": entry.summary.get("git_revision"), "own code": entry.summary.get("own_git_revision")}
    if known := ", ".join(f"{name} {revision}" for name, revision in revisions.items() if revision):
        yield "git", known


def _data(data: Mapping[str, Any]) -> str:
    parts = {"train": "training", "val": "validation", "test": "test"}
    sizes = ", ".join(f"{data[part]:,} {name}" for part, name in parts.items() if data.get(part))
    classes = f", {len(data['classes'])} classes" if data.get("classes") else ""
    return f"{data.get('name')}: {sizes} samples{classes}"


def _results(row: Mapping[str, float]) -> str:
    quantity = next((name for name in ("error_percent", "mse") if f"val_{name}" in row), "loss")
    columns = [f"{part}_{name}" for name in dict.fromkeys((quantity, "loss")) for part in ("train", "val", "test")]
    values = ", ".join(metric_text(column, row[column]) for column in columns if column in row)
    return f"{row['epoch']:.0f}: {values}"


def _files(directory: Path) -> Iterator[tuple[str, str]]:
    for label, pattern in (("figures", "*.png"), ("tables", "*.csv")):
        folder = directory / label
        names = sorted(path.name for path in (*directory.glob(pattern), *folder.glob("*")) if path.is_file())
        if names:
            yield label, " ".join(printable(name) for name in names)


def _next_of_run(entry: Entry) -> list[str]:
    directory = shell_line([str(entry.path)])
    if entry.status != "finished":
        return [f"dlhw resume={directory}"]
    if (entry.path / "best.pt").exists():
        return [f"dlhw evaluate {directory}", f"dlhw predict {directory} FILE"]
    return [f"dlhw ls {shell_line([str(entry.path.parent)])}"]
