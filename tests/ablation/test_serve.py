import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ablation.cli import main
from ablation.ledger import Ledger


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.cluster
def test_ui__answers_on_loopback(tmp_path: Path):
    Ledger.open(tmp_path / "results").write_study("small", {"study.yaml": "name: small"})
    port = _free_port()
    command = [sys.executable, "-m", "ablation", "ui", "--port", str(port)]
    command += ["--storage", str(tmp_path / "results")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=dict(os.environ)
    ) as running:
        try:
            end = time.monotonic() + 300
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                        assert answer.read() == b"OK"
                    break
                except OSError:
                    assert time.monotonic() < end
                    assert running.poll() is None
                    time.sleep(0.2)
        finally:
            running.terminate()
            running.communicate(timeout=300)


def test_ui__of_a_server_points_there(capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", "http://127.0.0.1:9")
    assert main(["ui"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err
