"""A Ray cluster of several nodes on this machine, each of which can lose its power."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from chaos.processes import alive, command, descendants, end

__all__ = ["Nodes"]

_START_WITHIN_S = 120.0
_TRIES = 3
_FREE_PORTS = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
_SMALL = ("--object-store-memory=80000000", "--disable-usage-stats", "--block")
_QUICK = '--system-config={"health_check_period_ms": 1000, "health_check_failure_threshold": 3}'


class Nodes:
    """A head without CPUs, and nodes with `cpus` each, until the block ends."""

    def __init__(self, count: int, cpus: int, environment: Mapping[str, str], log: Path) -> None:
        self.count, self.cpus, self.environment, self.log = count, cpus, environment, log
        self.port = _free_port()
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def roots(self) -> list[int]:
        """What the nodes' processes descend from."""
        return [running.pid for running in self._running]

    def __enter__(self) -> "Nodes":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def start(self) -> None:
        """Start a head, first of all, and all nodes; the address stays the same."""
        self._start(
            *("--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false", _QUICK),
        )
        for _ in range(self.count):
            self.add()

    def replace_head(self) -> None:
        """The head alone loses its power; a new cluster comes to its address.

        The nodes that had it find out, and end, within `RAY_gcs_rpc_server_reconnect_timeout_s`;
        until then their workers work on, and Ray starts no other head beside them on one machine.
        """
        head, *orphans = self._running
        self._cut(head)
        for orphan in orphans:
            orphan.wait(_START_WITHIN_S)
        self._running.clear()
        self.start()

    def add(self) -> None:
        """Start one more node."""
        self._start(f"--address={self.address}", f"--num-cpus={self.cpus}")

    def cut(self) -> None:
        """All nodes lose their power, the head first."""
        for running in self._running:
            self._cut(running)
        self._running.clear()

    def lose(self, raylet: int) -> None:
        """The node of a raylet loses its power, unless it was drained and has left by itself."""
        for running in [
            r for r in self._running if raylet in descendants(r.pid) or r.poll() is not None
        ]:
            self._running.remove(running)
            self._cut(running)

    def kill_raylet(self, raylet: int) -> None:
        """A raylet is killed, and its node comes down by itself."""
        running = self._of(raylet)
        self._running.remove(running)
        end([raylet])
        running.wait(_START_WITHIN_S)

    def drain(self, raylet: int, seconds: int) -> None:
        """Announce that the node of a raylet will be taken."""
        found = re.search(r"--node_id=(\w+)", command(raylet))
        assert found, command(raylet)
        deadline = f"--deadline-remaining-seconds={seconds}"
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back")
        self._ray(
            "drain-node", f"--address={self.address}", f"--node-id={found[1]}", *reason, deadline
        )

    def _of(self, raylet: int) -> "subprocess.Popen[bytes]":
        return next(r for r in self._running if raylet in descendants(r.pid))

    def _start(self, *how: str) -> None:
        """Start a node, once more where it took Ray's 30 s, after which it gives one up."""
        for _ in range(_TRIES):
            running = self._launch(*how)
            if self._comes_up(running):
                self._running.append(running)
                return
            self._cut(running)
        raise RuntimeError(f"A node did not start:\n{self.log.read_text()[-2000:]}")

    def _launch(self, *how: str) -> "subprocess.Popen[bytes]":
        ports = () if "--head" in how else _FREE_PORTS
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [_ray(), "start", "--node-ip-address=127.0.0.1", *how, *ports, *_SMALL],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _comes_up(self, running: "subprocess.Popen[bytes]") -> bool:
        limit = time.monotonic() + _START_WITHIN_S
        while running.poll() is None and time.monotonic() < limit:
            if any("ray::" in command(pid) for pid in descendants(running.pid)):
                return True
            time.sleep(0.1)
        return False

    def _cut(self, running: "subprocess.Popen[bytes]") -> None:
        everything = [running.pid, *descendants(running.pid)]
        for pid in everything:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()
        end([pid for pid in everything if alive(pid)])

    def _ray(self, *arguments: str) -> None:
        subprocess.run([_ray(), *arguments], env=self.environment, check=True, capture_output=True)


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
