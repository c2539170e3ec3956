"""MLflow's own server on the embedded store, on loopback, with links to the studies' pages."""

import os
import sys
from typing import NoReturn

from ablation.plain import plain
from ablation.tracking import pages

__all__ = ["serve"]


def serve(uri: str, studies: list[str], *, port: int) -> NoReturn:
    """Print where the studies are, and become MLflow's server of the store at `uri`."""
    url = f"http://127.0.0.1:{port}"
    for name, page in pages(uri, studies).items():
        print(plain(f"{name}: {url}{page}"), flush=True)
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Else it answers to names such as 10.evil.com, which may lead a browser here.
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
        "PYTHONSAFEPATH": "1",  # the folder that it is begun in may be a stranger's
    }
    # In place of this process: signals reach the server itself, and no worker of it is left over.
    os.execve(sys.executable, command, environment)
