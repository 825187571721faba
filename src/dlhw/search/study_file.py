"""The file ``study.journal`` of a search, which Optuna's tools open.

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("DIR/study.journal"))
    study = optuna.load_study(study_name=None, storage=storage)

The search itself does not read its proposals from this file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalChoiceType, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlhw.errors import UsageError
from dlhw.runtime.paths import printable
from dlhw.search.space import Interval, Parameter, Point, Space
from dlhw.storage.identity import differences

NAME = "study.journal"


class StudyFile:
    """The trials of a search with their learning curves, in the form of an Optuna study.

    Args:
        path: the file; a new one is created by the first :meth:`flush`.
        name: of the study.
        declaration: what determines the proposals. Raise UsageError if that of an existing file is another one.
    """

    def __init__(self, path: Path, *, name: str, declaration: Mapping[str, Any]) -> None:
        self._lines = _Lines(path)
        try:
            self._storage = JournalStorage(self._lines)
            studies = self._storage.get_all_studies()
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise _Lines.invalid(path) from error
        declared = json.loads(json.dumps(declaration))
        if not studies:
            self._study = self._storage.create_new_study([StudyDirection.MINIMIZE], name)
            for key, value in declared.items():
                self._storage.set_study_user_attr(self._study, key, value)
            return
        self._study = studies[0]._study_id
        stored = self._storage.get_study_user_attrs(self._study)
        if changes := differences(declared, {key: stored.get(key) for key in declared}):
            raise UsageError(
                f"{printable(path)}: the study of another search ({changes}); choose another directory, or repeat the "
                "search as it was started"
            )

    def update(
        self, number: int, space: Space, point: Point, curve: Mapping[int, float], *, state: TrialState, value: float
    ) -> None:
        """Add what is new about a trial: the validation metric by epoch, and its state if it has ended.

        Raise UsageError if the file has another point for this trial.
        """
        values = space.values(point)
        read = space.read_by(point)
        distributions = {parameter.name: _distribution(parameter) for parameter in read}
        params = {parameter.name: _value(parameter, values[parameter.key]) for parameter in read}
        trials = self._storage.get_all_trials(self._study, deepcopy=False)
        if number < len(trials):
            trial = trials[number]
            if trial.params != params:
                raise UsageError(
                    f"{printable(self._lines.path)}: trial {number} has other values than this search proposes "
                    "(the file was edited, or written with another version of optuna); "
                    "remove it and resume the search, or start a new one"
                )
        else:
            new = create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
            trial = self._storage.get_trial(self._storage.create_new_trial(self._study, new))
        self._extend(trial, curve, state, value)

    def _extend(self, trial: FrozenTrial, curve: Mapping[int, float], state: TrialState, value: float) -> None:
        if trial.state.is_finished():
            return
        for epoch, metric in curve.items():
            if epoch not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(trial._trial_id, epoch, metric)
        if state.is_finished():
            values = [value] if math.isfinite(value) else None
            self._storage.set_trial_state_values(trial._trial_id, state, values)

    def flush(self) -> None:
        """Write everything that is new to the disk."""
        self._lines.flush()


class _Lines(BaseJournalBackend):
    """The lines of a journal. New lines are written together; a line that a crash truncated is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        self._size = content.rfind(b"\n") + 1
        try:
            self._logs: list[dict[str, Any]] = [json.loads(line) for line in content[: self._size].splitlines()]
        except ValueError as error:
            raise self.invalid(path) from error
        self._written = len(self._logs)

    @staticmethod
    def invalid(path: Path) -> UsageError:
        """Return the error for a file that is not a journal."""
        return UsageError(f"{printable(path)}: not a journal of Optuna; restore it, or remove it and resume the search")

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the entries from this number on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, which :meth:`flush` writes."""
        self._logs += logs

    def flush(self) -> None:
        """Append the new lines to the file, and wait until they are on the disk."""
        new = self._logs[self._written :]
        if not new:
            return
        with self.path.open("r+b" if self._size else "wb") as file:
            file.seek(self._size)
            file.truncate()
            file.write("".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in new).encode())
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self._written = len(self._logs)


def _distribution(parameter: Parameter) -> BaseDistribution:
    """Return the distribution of the values as the config has them, not of positions in a list."""
    domain = parameter.domain
    if isinstance(domain, Interval):
        return domain.distribution
    return CategoricalDistribution([_number_or_text(text) for text in domain.texts])


def _value(parameter: Parameter, text: str) -> CategoricalChoiceType:
    if isinstance(parameter.domain, Interval):
        return int(text) if parameter.domain.integer else float(text)
    return _number_or_text(text)


def _number_or_text(text: str) -> CategoricalChoiceType:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
