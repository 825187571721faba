"""What counts as a finding of a drill, and how findings are reported.

A finding is an outcome that a person should never see: a traceback, a hang, an exit code without meaning, an error
message that is empty, long or not printable, a directory left behind by a refused command, a changed file of a
finished run. Findings of the same kind are reported as one, with the number of times and the shortest example.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from children import Outcome

CODES = (0, 1, 2)
"""Success, an error that is explained, a mistake in the flags."""
LONGEST_ERROR = 8
"""Lines on stderr when a command fails; more for sweeps."""
LONGEST_ERROR_OF_SWEEP = 40
PANICS = ("Traceback (most recent call last)", "Exception ignored", "--- Logging error ---", "Error in sys.excepthook")
DELIBERATE = "deliberate"
"""A word in the error of a drill's own code, whose traceback is right."""
RUN_FILES = ("config.yaml", ".hydra", "run.log")
"""What the directory of a run has from its start."""

Snapshot = Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """Something that should not happen.

    Args:
        kind: findings of the same kind have the same cause, as far as a program can tell.
        repeat: the command that repeats it.
        line: what a person would have typed.
        detail: the output, or what changed.
    """

    kind: str
    repeat: str
    line: str
    detail: str


def verdicts(
    outcome: Outcome, *, codes: Collection[int] = CODES, sweep: bool = False, verbose: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of what is wrong with a command's end and output.

    Args:
        outcome: of the command.
        codes: the expected exit codes.
        sweep: the command has several jobs, each of which may have an error.
        verbose: the command was told to write much.
    """
    text = f"{outcome.err}\n{outcome.out}"
    if outcome.timed_out:
        yield "hang", f"killed after {outcome.seconds:.0f} s; {_end(outcome.err)}"
        return
    panic = next((one for one in PANICS if one in text), None)
    if panic is not None and not (DELIBERATE in text and "mycode.py" in text):
        name = "traceback" if panic == PANICS[0] else panic
        yield f"{name}: {_cause(text)}", _end(text, lines=12)
    elif outcome.code not in codes:
        yield f"exit code {outcome.code}", _end(text)
    elif outcome.code == 1 and not text.strip():
        yield "exit code 1 without a message", ""
    if panic is None and outcome.code and not verbose:
        count, longest = len(outcome.err.splitlines()), LONGEST_ERROR_OF_SWEEP if sweep else LONGEST_ERROR
        if count > longest:
            yield f"long error: {_without_values(outcome.err.splitlines()[-1])}", f"{count} lines; {_end(text)}"
    if raw := sorted({c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"}):
        yield f"control characters in the output: {raw!r}", repr(next(x for x in text.splitlines() if raw[0] in x))
    if outcome.orphans:
        yield "processes left behind", _end(text)


def snapshot(directory: Path) -> Snapshot:
    """Return the content of everything below a directory: a hash for a file, the target of a link, "" for a folder."""
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


def abandoned_directories(before: Snapshot, after: Snapshot, kept: Collection[str] = ()) -> list[str]:
    """Return the new directories that a run began without writing its summary, and empty ones except those kept."""
    folders = [name for name, content in after.items() if content == "folder" and name not in before]
    result = []
    for folder in folders:
        inside = [name.removeprefix(f"{folder}/") for name in after if name.startswith(f"{folder}/")]
        begun = any(name in RUN_FILES for name in inside) and "hydra.yaml" not in inside  # which is in .hydra
        if (not inside and folder not in kept) or (begun and "summary.json" not in inside):
            result.append(folder)
    return result


def report(findings: Sequence[Finding], *, most: int = 200) -> str:
    """Return all findings, grouped by their kind, the most frequent first, each with its shortest example."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    lines = []
    for kind, members in sorted(groups.items(), key=lambda item: -len(item[1]))[:most]:
        example = min(members, key=lambda finding: len(finding.line))
        lines += [f"{len(members)} x {kind}", f"    {example.line}", f"    repeat: {example.repeat}"]
        lines += [f"    | {line}" for line in example.detail.splitlines()]
    return "\n".join(lines)


def summary(counts: Mapping[str, int], findings: Sequence[Finding]) -> str:
    """Return the counts of a drill in one line."""
    kinds = len({finding.kind for finding in findings})
    numbers = ", ".join(f"{number} {what}" for what, number in counts.items())
    return f"{numbers}; {len(findings)} findings of {kinds} kinds"


def _cause(text: str) -> str:
    """Return the last line of the last traceback, without what differs from case to case, and where it was raised."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = max((index for index, line in enumerate(lines) if any(one in line for one in PANICS)), default=0)
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


def _end(text: str, lines: int = 6) -> str:
    """Return the last lines of an output, each shortened."""
    return "\n".join(_printable(line)[:200] for line in [x for x in text.splitlines() if x.strip(" ^~")][-lines:])


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
