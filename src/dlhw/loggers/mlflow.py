"""Send a run to MLflow."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from dlhw.errors import UsageError
from dlhw.loggers.content import Conclusion, LoggedRun, Started
from dlhw.runtime.downloads import require_answer
from dlhw.storage.record import Row

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
"""The largest batches that MLflow accepts."""
_LONGEST_PARAMETER = 6000
DEFAULT_URI = "sqlite:///mlflow.db"
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class MLflow:
    """A run of MLflow with the metrics, hyperparameters, tags, figures and files of a run.

    The id of MLflow's run is kept, so a resumed run continues it. Its metric ``epoch`` says which rows it has.

    Args:
        uri: a tracking server or a database, such as ``http://host:5000``; None: that of the environment variable
            MLFLOW_TRACKING_URI, which is not written to any file, or else ``sqlite:///mlflow.db``.
        experiment: the experiment of MLflow that holds the run; it is created if it does not exist.
    """

    package = "mlflow"

    def __init__(self, *, uri: str | None, experiment: str) -> None:
        if uri is not None and urlsplit(uri).password:
            raise UsageError(
                "logger.mlflow.uri: must not contain a password, because configs are written to files; expected the "
                "password in MLFLOW_TRACKING_PASSWORD, or all in MLFLOW_TRACKING_URI"
            )
        self.uri = uri or _without_password(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
        self.experiment = experiment
        self.id = ""
        self.status = "KILLED"

    @property
    def place(self) -> str:
        """The URI without a password."""
        return re.sub(r"//[^/@]*@", "//", self.uri)

    def start(self, run: LoggedRun, identifier: str | None) -> Started:
        """Create a run of MLflow or continue the one with this id, and send the hyperparameters that it lacks."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        require_answer(self.uri)
        for name in ("mlflow", "alembic"):  # which report each step of creating a database
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client: MlflowClient = MlflowClient(_absolute(self.uri))
        stored = self._run(identifier)
        if stored is None:
            tags = run.tags | {"mlflow.source.name": "dlhw", "directory": str(run.directory)}
            stored = self.client.create_run(self._experiment_id(), run_name=run.name, tags=tags)
        else:
            self.client.update_run(stored.info.run_id, status="RUNNING")
        self.id = stored.info.run_id
        parameters = [
            Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in run.settings.items()
            if name not in stored.data.params  # they cannot be changed
        ]
        for batch in _batches(parameters, _MOST_PARAMETERS):
            self.client.log_batch(self.id, params=batch)
        return Started(self.id, int(stored.data.metrics.get("epoch", 0)))

    def _run(self, identifier: str | None) -> Run | None:
        """Return the run with this id; None if MLflow does not have it, or has deleted it."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        if identifier is None:
            return None
        try:
            run = self.client.get_run(identifier)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(self.experiment)
        if known is not None:
            return str(known.experiment_id)
        try:
            return str(self.client.create_experiment(self.experiment))
        except MlflowException:  # another run has created it in the meantime
            known = self.client.get_experiment_by_name(self.experiment)
            if known is None:
                raise
            return str(known.experiment_id)

    def rows(self, rows: Sequence[Row]) -> None:
        """Send the rows, whole rows in each request."""
        for some in _batches(rows, max(1, _MOST_METRICS // len(rows[0]))):
            self._send((name, value, int(row["epoch"])) for row in some for name, value in row.items())

    def _send(self, values: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value, step in values])

    def end(self, conclusion: Conclusion) -> None:
        """Send the result, the figures and the files."""
        from mlflow.entities import RunTag

        known = self.client.get_run(self.id).data.metrics
        numbers = {name: value for name, value in conclusion.numbers.items() if known.get(name) != value}
        self._send((name, value, 0) for name, value in numbers.items())
        self.client.log_batch(self.id, tags=[RunTag(name, text) for name, text in conclusion.texts.items()])
        for path in conclusion.files:
            self.client.log_artifact(self.id, str(path), "tables" if path.parent.name == "tables" else None)
        for path in conclusion.figures.values():
            self.client.log_artifact(self.id, str(path), "figures")
        self.status = _STATUS[conclusion.status]

    def close(self) -> None:
        """Set the status of MLflow's run, ``KILLED`` for an interrupted run."""
        if self.id:
            self.client.set_terminated(self.id, self.status)


def _without_password(uri: str) -> str:
    """Return the URI without user and password, which MLflow gets in its other variables: its errors have the URI."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _absolute(uri: str) -> str:
    """Return the URI of a database with an absolute path, because MLflow keeps one connection for each URI."""
    prefix = "sqlite:///"
    return f"{prefix}{Path(uri.removeprefix(prefix)).absolute()}" if uri.startswith(prefix) else uri


def _batches(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(values)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
