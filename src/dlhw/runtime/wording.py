"""Names and values of metrics as text, and tables of text."""

from __future__ import annotations

from collections.abc import Sequence

PART_NAMES = {"train": "training", "val": "validation", "test": "test"}
_QUANTITIES = {"error_percent": "error", "mse": "squared error"}


def metric_name(column: str) -> str:
    """Return the name of a column of ``metrics.csv``: ``validation error`` for ``val_error_percent``."""
    part, _, quantity = column.partition("_")
    if part not in PART_NAMES:
        return column.removesuffix("_percent").replace("_", " ")
    return f"{PART_NAMES[part]} {_QUANTITIES.get(quantity, quantity.replace('_', ' '))}"


def metric_value(column: str, value: float) -> str:
    """Return a value of a column of ``metrics.csv``: ``2.39 %`` for an error, else four digits."""
    return f"{value:.2f} %" if column.endswith("_percent") else f"{value:.4g}"


def metric_text(column: str, value: float) -> str:
    """Return name and value, such as ``validation error 2.39 %``."""
    return f"{metric_name(column)} {metric_value(column, value)}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Return lines with aligned columns; those named in ``right`` are right-aligned. The last column is not padded."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
