"""Run once by compose.yaml: buckets, and the user of MLflow that studies are; again, it mends.

Studies are no administrators of MLflow: what leaks from a node opens their own experiments alone.
"""

import base64
import configparser
import json
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from pyarrow.fs import FileType, S3FileSystem

_SECRETS = Path("/run/secrets")
_BUCKETS = ("ablation", "mlflow")
_USERS = "http://mlflow:5000/api/2.0/mlflow/users"
_ADMIN = "admin"
_ANSWER_WITHIN_S = 30.0

Tell = Callable[[str, str, dict[str, str]], None]
"""Sends a request about users: method, what to do, content. Raises HTTPError."""


def make_buckets() -> None:
    """Make those buckets that are not there; keys are where AWS' clients look for them."""
    files = S3FileSystem(
        endpoint_override="storage:7070",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    for bucket in _BUCKETS:
        if files.get_file_info(bucket).type == FileType.NotFound:
            files.create_dir(bucket)


def make_user(credentials: Path, tell: Tell) -> None:
    """Make the user of a credentials file, or give it the password that stands there now."""
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read_string(credentials.read_text())
    user = {
        "username": parsed["mlflow"]["mlflow_tracking_username"],
        "password": parsed["mlflow"]["mlflow_tracking_password"],
    }
    try:
        tell("POST", "create", user)
    except HTTPError as error:
        with error:
            if b"RESOURCE_ALREADY_EXISTS" not in error.read():
                raise
        tell("PATCH", "update-password", user)


def _tell(method: str, what: str, content: dict[str, str]) -> None:
    password = (_SECRETS / "mlflow_admin_password").read_text().strip()
    token = base64.b64encode(f"{_ADMIN}:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    request = Request(
        f"{_USERS}/{what}", data=json.dumps(content).encode(), headers=headers, method=method
    )
    build_opener(ProxyHandler({})).open(request, timeout=_ANSWER_WITHIN_S).close()


if __name__ == "__main__":
    make_buckets()
    make_user(_SECRETS / "mlflow_credentials", _tell)
