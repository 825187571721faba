"""The line about each job of a sweep when it ends: its result, the time left for the sweep, the best result so far.

The jobs may end in different processes, so everything is read from the directory of the sweep.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlhw.runtime.progress import short_time
from dlhw.runtime.wording import metric_text, metric_value
from dlhw.storage import stored

WIDTH = 80
_known: dict[Path, tuple[int, Mapping[str, Any]]] = {}
"""The summaries that were read, with the times of their files; a sweep of a thousand jobs reads each only once."""


@dataclass(frozen=True)
class JobLines:
    """Describes the jobs of one call of a sweep.

    Args:
        directory: of the sweep.
        jobs: the number of jobs that this call trains.
        started: when it started, in seconds since the epoch.
    """

    directory: Path
    jobs: int
    started: float

    def line(self, number: int, job: str) -> str:
        """Return the line about job ``number``, counted from 1, in the subdirectory ``job``, which has ended."""
        path = self.directory / job
        summaries = dict(_summaries(path.parent))  # a confirmation has a folder of its own
        own = summaries.get(path.name, (0.0, {}))[1]
        parts = [", ".join(filter(None, [_result(own), _seconds(own)]))]
        done = sum(ended >= self.started for ended, _ in summaries.values())
        if 0 < done < self.jobs:
            parts.append(f"{short_time((time.time() - self.started) / done * (self.jobs - done))} left")
        line = f"job {number} of {self.jobs}: {job}: {'; '.join(parts)}"
        best = _best({name: summary for name, (_, summary) in summaries.items()})
        if best is None or best[0] == [path.name]:
            return line
        names = best[0][0] if len(best[0]) == 1 else f"{len(best[0])} jobs"
        shorter = f"{line}; best {best[1]}"
        return longer if len(longer := f"{shorter} ({names})") <= WIDTH else shorter


def _summaries(directory: Path) -> Iterator[tuple[str, tuple[float, Mapping[str, Any]]]]:
    """Yield the name of each job with the time of its summary and its content."""
    for path in sorted(directory.glob("*/summary.json")):
        try:
            changed = path.stat().st_mtime_ns
            if path not in _known or _known[path][0] != changed:
                _known[path] = changed, stored.read_summary(path.parent)
        except (OSError, stored.Unreadable):
            continue
        yield path.parent.name, (changed / 1e9, _known[path][1])


def _result(summary: Mapping[str, Any]) -> str:
    monitor, best = str(summary.get("monitor")), summary.get("best") or {}
    if summary.get("status") == "finished" and monitor in best:
        return metric_text(monitor, best[monitor]).replace("validation", "val")
    return str(summary.get("status", "unfinished"))


def _seconds(summary: Mapping[str, Any]) -> str:
    seconds = summary.get("seconds")
    return "" if seconds is None else short_time(seconds)


def _best(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], str] | None:
    """Return the jobs with the lowest monitored metric, and that metric; None if fewer than two jobs have one."""
    finished = {
        name: (summary["best"][summary["monitor"]], summary["monitor"])
        for name, summary in summaries.items()
        if summary.get("status") == "finished" and summary.get("monitor") in (summary.get("best") or {})
    }
    if len(finished) < 2 or len({monitor for _, monitor in finished.values()}) > 1:
        return None
    value, monitor = min(finished.values())
    return [job for job, (other, _) in finished.items() if other == value], metric_value(monitor, value)
