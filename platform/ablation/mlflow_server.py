"""How MLflow is reached: a client that gives up in time, and a trial of whether it can be written.

Beside `tracking`, the mirror, the only module that knows MLflow.
"""

import logging
import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["TRACKING_ERRORS", "connect", "find_experiment", "try_out"]

TRACKING_ERRORS = (MlflowException, SQLAlchemyError, OSError, ImportError)
"""What a tracking store raises that is away, full, broken or without its driver."""

_SETTINGS = {
    # MLflow's own are 7 tries more of 120 s each. A hanging server costs half a minute with these;
    # whoever follows a study tries again later.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # A server may ask for hours, and the request would sleep for them.
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # Stdout is for results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def connect(uri: str) -> MlflowClient:
    """A client of a tracking store."""
    # What goes wrong is raised; beside that, a store of its own logs a traceback each time.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    return MlflowClient(uri)


def find_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The experiment of that name, found, brought back or made; `artifacts` as in Mirror, its own.

    Raises TRACKING_ERRORS.
    """
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else artifacts.absolute().as_uri()
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, location, kind))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
    except MlflowException as error:
        # Another driver may have made it, or brought it back, in this moment.
        beaten = error.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
        if not beaten or (found := client.get_experiment_by_name(name)) is None:
            raise
    return str(found.experiment_id)


def try_out(uri: str) -> str:
    """Write a run with a metric and an artifact, and delete it; the version of who keeps it.

    Raises TRACKING_ERRORS where any of that does not work.
    """
    client = connect(uri)
    run = client.create_run(find_experiment(client, "ablation-doctor", None)).info.run_id
    try:
        client.log_metric(run, "loss", 0.5)
        client.log_text(run, "It can be written.", "note.txt")
    finally:
        client.delete_run(run)
    if not uri.startswith(("http://", "https://")):
        return mlflow.__version__
    host = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    return str(http_request(host, "/version", "GET").text).strip()  # type: ignore[no-untyped-call]
