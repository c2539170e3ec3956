"""Drivers on a real Ray of this machine; tests/cluster has one with a token and several nodes."""

import gc
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import ray
from aiohttp import ServerDisconnectedError

from ablation.executors.jobs import Job, Jobs
from ablation.layout import LostPlaceError, PlaceError
from leaks import MLFLOW_LEAKS

pytestmark = [pytest.mark.cluster, *MLFLOW_LEAKS]

DRIVER = """\
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True)))
print("begun", os.environ["MARK"], flush=True)
time.sleep(float(sys.argv[1]))
print("ended")
sys.exit(3)
"""
BEGUN_WITHIN_S = 120.0


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    port = free_port()
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=True,
        dashboard_port=port,
        log_to_driver=False,
    )
    yield Jobs.at(f"http://127.0.0.1:{port}")
    ray.shutdown()
    gc.collect()  # Ray leaves processes to it


@pytest.fixture
def begin(jobs: Jobs, tmp_path: Path):
    """Submits a driver that works for some seconds."""
    (tmp_path / "driver.py").write_text(DRIVER)

    def submit(job: str, work_s: float) -> None:
        command = f"{sys.executable} driver.py {work_s}"
        jobs.submit(job, command, folder=tmp_path, environment={"MARK": job})

    return submit


def test_job__is_followed_to_its_end(jobs, begin, capfd):
    said: list[str] = []
    assert jobs.look("toys-1") is None
    begin("toys-1", 1.0)
    jobs.follow("toys-1", said.append)
    assert "".join(said).endswith("begun toys-1\nended\n")
    assert jobs.logs("toys-1") == "".join(said)
    found = jobs.look("toys-1")
    assert found == Job(state="failed", over=True, code=3, message=found.message)
    begin("toys-1", 60.0)
    assert jobs.look("toys-1") == found, "a job is submitted once"
    assert "INFO" not in "".join(capfd.readouterr()), "Ray tells of its uploads"


def test_job__that_is_stopped_saves_first(jobs, begin):
    begin("toys-2", 600.0)
    limit = time.monotonic() + BEGUN_WITHIN_S
    while "begun" not in jobs.logs("toys-2"):
        assert time.monotonic() < limit
        time.sleep(0.2)
    said: list[str] = []
    jobs.stop("toys-2")
    jobs.follow("toys-2", said.append)
    assert "".join(said).endswith("saved\n")
    found = jobs.look("toys-2")
    assert (found.state, found.over) == ("stopped", True)


def test_job__that_is_stopped_at_once_and_again(jobs, begin):
    begin("toys-3", 600.0)
    for _ in range(2):
        jobs.stop("toys-3")
    jobs.follow("toys-3", lambda text: None)
    found = jobs.look("toys-3")
    assert (found.state, found.over) == ("stopped", True)


def test_job__behind_a_proxy_that_lets_no_websocket_through():
    class Client:
        async def tail_job_logs(self, job):
            raise ServerDisconnectedError
            yield

    with pytest.raises(LostPlaceError, match="does not answer as it must: Server disconnected"):
        Jobs("http://ray.lab", Client()).follow("toys-1", print)


def test_session__is_the_heads(jobs):
    assert jobs.session().startswith("session_")
    assert jobs.session() == jobs.session()


def test_jobs__where_nobody_listens():
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(PlaceError, match=f"Ray's dashboard must answer at {address}"):
        Jobs.at(address)
