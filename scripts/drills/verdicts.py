"""What counts as a finding of a drill.

A finding is an outcome that a person should never see: a traceback, a hang, an undocumented exit code, an error message
that is empty, long or not printable, a directory left behind by a refused command, a changed file of a finished run.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from command_line import Outcome

CODES = (0, 1, 2)
"""Success, an error with a message, a mistake in the flags."""
LONGEST_ERROR = 8
"""Lines on stderr when a command fails; more for sweeps."""
LONGEST_ERROR_OF_SWEEP = 40
TRACEBACKS = (
    "Traceback (most recent call last)",
    "Fatal Python error",
    "Exception ignored",
    "--- Logging error ---",
    "Error in sys.excepthook",
)
"""How a traceback starts, of Python or of its crash handler."""
DELIBERATE = "deliberate"
"""A word in errors that a drill's own code raises on purpose. Their traceback is expected."""
RUN_FILES = ("config.yaml", ".hydra", "run.log")
"""What the directory of a run has from its start."""

Snapshot = Mapping[str, str]


def traceback_in(text: str) -> str | None:
    """Return how the first kind of traceback in an output starts; None if it has none."""
    return next((start for start in TRACEBACKS if start in text), None)


def patience(seconds: float) -> float:
    """Return a time limit for an idle machine, extended by the present load of this one."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def last_lines(text: str, count: int = 6) -> str:
    """Return the last lines of an output that have text, each shortened and printable."""
    lines = [line for line in text.splitlines() if line.strip(" ^~")][-count:]
    return "\n".join(_printable(line)[:300] for line in lines)


def verdicts(
    outcome: Outcome, *, codes: Collection[int] = CODES, sweep: bool = False, verbose: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of what is wrong with a command's end and output.

    Args:
        outcome: of the command.
        codes: the expected exit codes.
        sweep: the command has several jobs, each of which may have an error.
        verbose: the command prints more than usual.
    """
    text = f"{outcome.err}\n{outcome.out}"
    if outcome.timed_out:
        yield "hang", f"killed after {outcome.seconds:.0f} s; {last_lines(outcome.err)}"
        return
    start = traceback_in(text)
    if start is not None and not (DELIBERATE in text and "mycode.py" in text):
        name = "traceback" if start == TRACEBACKS[0] else start
        yield f"{name}: {_cause(text)}", last_lines(text, count=12)
    elif outcome.code not in codes:
        yield f"exit code {outcome.code}", last_lines(text)
    elif outcome.code == 1 and not text.strip():
        yield "exit code 1 without a message", ""
    if start is None and outcome.code and not verbose:
        count, longest = len(outcome.err.splitlines()), LONGEST_ERROR_OF_SWEEP if sweep else LONGEST_ERROR
        if count > longest:
            yield f"long error: {_without_values(outcome.err.splitlines()[-1])}", f"{count} lines; {last_lines(text)}"
    if raw := sorted({c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"}):
        yield f"control characters in the output: {raw!r}", repr(next(x for x in text.splitlines() if raw[0] in x))
    if outcome.orphans:
        yield "processes left behind", last_lines(text)


def snapshot(directory: Path) -> Snapshot:
    """Return the content of everything below a directory: a hash for a file, a link's target, or ``folder``."""
    result = {}
    for folder, names, files in os.walk(directory):
        for name in [*names, *files]:
            path = Path(folder, name)
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink():
                result[relative] = f"-> {os.readlink(path)}"
            elif path.is_file():
                result[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                result[relative] = "folder" if path.is_dir() else "special"
    return result


def changed_files(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the files of ``before`` that have another content in ``after``, or are missing there."""
    return [name for name, content in before.items() if after.get(name) != content]


def functions_of_dlhw(text: str) -> set[str]:
    """Return the names of dlhw's functions in a traceback; ``<module>`` is the import of a module."""
    return set(re.findall(r'File "[^"]*/dlhw/[\w/]+\.py", line \d+, in (.+)', text))


def is_interrupted_import(text: str) -> bool:
    """Return whether a traceback is that of a KeyboardInterrupt while Python imports the program."""
    return re.search("^KeyboardInterrupt$", text, re.MULTILINE) is not None and functions_of_dlhw(text) <= {"<module>"}


def abandoned_directories(before: Snapshot, after: Snapshot, kept: Collection[str] = ()) -> list[str]:
    """Return the new directories in which a run started but wrote no summary, and empty ones except ``kept``."""
    folders = [name for name, content in after.items() if content == "folder" and name not in before]
    result = []
    for folder in folders:
        inside = [name.removeprefix(f"{folder}/") for name in after if name.startswith(f"{folder}/")]
        begun = any(name in RUN_FILES for name in inside) and "hydra.yaml" not in inside  # which is in .hydra
        if (not inside and folder not in kept) or (begun and "summary.json" not in inside):
            result.append(folder)
    return result


def _cause(text: str) -> str:
    """Return the last line of the last traceback, without what differs from case to case, and where it was raised."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = max((index for index, line in enumerate(lines) if any(one in line for one in TRACEBACKS)), default=0)
    frames = [index for index, line in enumerate(lines) if line.lstrip().startswith("File ")]
    last = max([start, *frames[-1:]])
    errors = [line for line in lines[last + 1 :] if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
    places = re.findall(r'File "[^"]*?/(?:src|site-packages)/([^"]+)", line \d+, in (\w+)', "\n".join(lines[start:]))
    place = " in {}:{}".format(*places[-1]) if places else ""
    return f"{_without_values(errors[0] if errors else lines[-1])}{place}"


def _without_values(line: str) -> str:
    """Replace numbers, quoted texts and paths in a message, so that equal mistakes have equal messages."""
    line = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'...'", line)
    return re.sub(r"/\S+", "/...", re.sub(r"\d+(\.\d+)?", "0", line))[:140]


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
