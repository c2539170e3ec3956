"""Real servers for a study: MLflow's own, and an S3 of moto's."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from chaos.processes import descendants, end

__all__ = ["BUCKET", "S3_KEYS", "mlflow_server", "s3_server", "s3_uri"]

BUCKET = "studies"
S3_KEYS: Mapping[str, str] = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos"}
_START_WITHIN_S = 180.0


@contextmanager
def mlflow_server(folder: Path) -> Generator[str]:
    """`host:port` of a tracking server whose store lies in a folder."""
    address = f"127.0.0.1:{_free_port()}"
    host, port = address.split(":")
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with _serving(command, folder / "mlflow.log", f"http://{address}/health"):
        yield address


@contextmanager
def s3_server(folder: Path) -> Generator[str]:
    """`host:port` of an S3 server with one empty bucket."""
    address = f"127.0.0.1:{_free_port()}"
    host, port = address.split(":")
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
    with _serving(command, folder / "s3.log", f"http://{address}/moto-api/"):
        from pyarrow.fs import S3FileSystem

        S3FileSystem(
            access_key=S3_KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=address,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        ).create_dir(BUCKET)
        yield address


def s3_uri(address: str, folder: str) -> str:
    """A folder on the server, the keys being in the environment."""
    return f"s3://{BUCKET}/{folder}?endpoint_override={address}&scheme=http&region=us-east-1"


@contextmanager
def _serving(command: list[str], log: Path, health: str) -> Generator[None]:
    environment = {**os.environ, **S3_KEYS}
    with log.open("ab") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        limit = time.monotonic() + _START_WITHIN_S
        while not _answers(health):
            if running.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{command[2]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        end([running.pid, *descendants(running.pid)])
        running.wait()


def _answers(at: str) -> bool:
    try:
        with urlopen(at, timeout=2):
            return True
    except (URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
