"""MLflow's own server on the embedded store, on loopback, with links to the studies' pages."""

import os
import subprocess
import sys

from ablation.ledger import Ledger
from ablation.profile import Profile
from ablation.tracking import pages

__all__ = ["serve"]


def serve(profile: Profile, *, port: int) -> int:
    """Serve until interrupted; the server's exit code."""
    uri, artifacts = profile.mlflow
    if artifacts is None:
        print(f"The tracking server is {uri}: open that page.", file=sys.stderr)
        return 2
    url = f"http://127.0.0.1:{port}"
    for name, page in pages(uri, Ledger.open(profile.storage).studies()).items():
        print(f"{name}: {url}{page}")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return subprocess.run(
        command, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}, check=False
    ).returncode
