"""A small lab on hosts of their own: a Ray head, workers that come back by themselves, a client."""

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.hosts import Host, Network

__all__ = ["Lab"]

_BIN = Path(sys.executable).parent
_AGAIN = "while true; do {} --block; sleep 1; done"  # as a restart policy does
_PORTS = ("--node-manager-port=6380", "--object-manager-port=6381")
_AGENT = ("--dashboard-agent-listen-port=52365", "--dashboard-agent-grpc-port=6382")
_WORKERS = ("--min-worker-port=10002", "--max-worker-port=10100")
_SMALL = ("--object-store-memory=80000000", "--disable-usage-stats")
_QUICK = '{"health_check_period_ms": 1000, "health_check_failure_threshold": 3}'
_UP_WITHIN_S = 180.0


@dataclass(slots=True)
class Lab:
    """Ray on a network; what is asked runs on the client, which has no part in the cluster."""

    network: Network
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    head: Host = field(init=False)
    client: Host = field(init=False)
    workers: dict[str, Host] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head, self.client = self.network.host("head"), self.network.host("me")
        profile = {
            "address": f"{self.head.address}:6379",
            "storage": str(self.network.home / "results"),
            "tracking": f"sqlite:///{self.network.home / 'mlflow.db'}",
        }
        self.profile.write_text(json.dumps(profile))

    @property
    def profile(self) -> Path:
        """The profile of the lab's users."""
        return self.network.home / "lab.yaml"

    @property
    def secrets(self) -> Mapping[str, str]:
        """The environment of whoever may use the cluster."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start_head(self) -> None:
        """Start the head, and wait until its dashboard answers."""
        at = self.head.address
        self.head.start(
            *(str(_BIN / "ray"), "start", "--head", "--block", "--port=6379", "--num-cpus=0"),
            *(f"--node-ip-address={at}", f"--dashboard-host={at}", "--dashboard-port=8265"),
            *(*_PORTS, *_AGENT, *_WORKERS, *_SMALL, f"--system-config={_QUICK}"),
            log="head.log",
            **self.secrets,
        )
        self.client.wait_for(f"http://{at}:8265/", _UP_WITHIN_S)

    def start_worker(self, name: str, cpus: int = 1) -> None:
        """Start a worker node that joins, and joins again where it has lost the head."""
        host = self.network.host(name)
        command = " ".join(
            [
                *(str(_BIN / "ray"), "start", f"--address={self.head.address}:6379"),
                *(f"--node-ip-address={host.address}", f"--num-cpus={cpus}"),
                *(*_PORTS, *_AGENT, *_WORKERS, *_SMALL),
            ]
        )
        host.start("sh", "-c", _AGAIN.format(command), log=f"{name}.log", **self.secrets)
        self.workers[name] = host

    def ablation(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """What a command of the client ends with, prints and says."""
        done = self.client.run(
            *(str(_BIN / "ablation"), *arguments, "--on", str(self.profile)),
            **{**self.secrets, **environment},
        )
        return done.returncode, done.stdout, done.stderr

    def wait_until(
        self,
        what: str,
        *arguments: str,
        or_in: Sequence[str] = (),
        times: int = 1,
        within_s: float = _UP_WITHIN_S,
    ) -> None:
        """Repeat a command of the client, and another, until they print something so often."""
        limit = time.monotonic() + within_s
        while True:
            said = [self.ablation(*each) for each in (arguments, or_in) if each]
            if sum(out.count(what) for _, out, _ in said) >= times:
                return
            if time.monotonic() > limit:
                raise TimeoutError(f"{what!r} is not in {said}:\n{self.logs()}")
            time.sleep(1.0)

    def logs(self) -> str:
        """The ends of all logs."""
        found = []
        for file in sorted(self.network.home.glob("*.log")):
            with suppress(OSError):
                found.append(f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}")
        return "\n".join(found)

    @classmethod
    def environment(cls) -> dict[str, str]:
        """What all hosts have in their environment: nothing of whoever runs the tests but paths."""
        kept = ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV")
        plain = {name: os.environ[name] for name in kept if name in os.environ}
        return {**plain, "PATH": f"{_BIN}:{plain.get('PATH', '')}", "RAY_USAGE_STATS_ENABLED": "0"}
