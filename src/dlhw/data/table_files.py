"""Read a table from a CSV or Parquet file; each file that is not a table is one line of an error."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import logging
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhw.errors import UsageError
from dlhw.runtime.paths import printable, shortened

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq")
DELIMITERS = ",;\t|"


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet file, or a CSV file with any of the common delimiters, uncompressed or .gz.

    Columns without a name, such as the index that pandas writes, are left out. Raise UsageError if the file is not a
    table, or has two columns with the same name.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix.lower() in PARQUET else _read_csv(path)
    except FileNotFoundError as error:
        raise UsageError(f"{printable(path)}: no such file") from error
    except ImportError as error:
        raise UsageError(f"{printable(path)}: Parquet needs pyarrow; install it (pip install pyarrow)") from error
    except pd.errors.EmptyDataError as error:
        raise UsageError(f"{printable(path)}: is empty; expected a line with the names of the columns") from error
    except UnicodeError as error:
        raise UsageError(
            f"{printable(path)}: is not UTF-8 text; expected a CSV file with this encoding, or Parquet"
        ) from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, pd.errors.ParserWarning) as error:
        reason = shortened(" ".join(str(error).split()))
        raise UsageError(f"{printable(path)}: cannot be read as a table ({reason})") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    named = frame.loc[:, [bool(name) for name in frame]].reset_index(drop=True)
    if named.shape[1] < frame.shape[1]:
        log.info("%s: columns without a name are left out: %d", printable(path), frame.shape[1] - named.shape[1])
    repeated = named.columns[named.columns.duplicated()]
    if len(repeated):
        raise UsageError(f"{printable(path)}: two columns have the name {shortened(repeated[0])}; rename one of them")
    return named


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file; a row with too many cells is an error, and missing cells at the end of a row are missing."""
    import pandas as pd

    options: dict[str, Any] = {
        "sep": _delimiter(path),
        "encoding": "utf-8-sig",
        "skipinitialspace": True,
        "index_col": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, **options)
        frame: pd.DataFrame = pd.read_csv(path, low_memory=False, **options)
    for name in [name for name in frame if frame[name].dtype.kind == "O"]:  # whole numbers of more than 64 bits
        known = frame[name].dropna()
        numbers = pd.to_numeric(known.map(str), errors="coerce")
        if len(known) and numbers.notna().all():
            frame[name] = numbers.astype(float).reindex(frame.index)
    frame.columns = header.iloc[0].fillna("")  # pandas numbers repeated names, and names those that are empty
    return frame


def _delimiter(path: Path) -> str:
    """Return what separates the cells: a comma, semicolon, tab or bar.

    It gives the first line several cells, the second line as many if possible, and otherwise the most cells.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
        first = list(itertools.islice(filter(str.strip, lines), 2)) or [""]

    def fit(delimiter: str) -> tuple[bool, bool, int]:
        counts = [len(next(csv.reader([line], delimiter=delimiter))) for line in first]
        return counts[0] > 1, counts[0] == counts[-1], counts[0]

    return max(DELIMITERS, key=fit)
