"""Hosts on one machine: network namespaces on a bridge, each with its own address.

What runs on a host sees its own network, its own processes and its own /tmp/ray, but the same files
elsewhere; so ports, tokens and addresses are what they are between real machines. It needs root,
`ip` and `unshare`.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

__all__ = ["Host", "Network", "missing"]

_APART = ("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-c")
_OWN = (
    "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t proc proc /proc "
    '&& cd "$HOME" && exec "$@"'
)


def missing() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid():
        return "network namespaces need root"
    return ", ".join(f"there is no {name}" for name in ("ip", "unshare") if not shutil.which(name))


@dataclass(slots=True)
class Host:
    """A machine of its own, at `address`; `home` is a folder that all hosts see."""

    name: str
    address: str
    home: Path
    environment: Mapping[str, str]
    _running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *command: str, log: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start something that goes on, whose output goes to a file in `home`."""
        with (self.home / log).open("ab") as out:
            running = subprocess.Popen(
                self._within(command),
                stdout=out,
                stderr=out,
                env={**self.environment, **environment},
                start_new_session=True,
            )
        self._running.append(running)
        return running

    def run(
        self, *command: str, within_s: float = 300.0, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run something to its end."""
        return subprocess.run(
            self._within(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=within_s,
            env={**self.environment, **environment},
        )

    def cut(self) -> None:
        """The cable is pulled: nobody reaches it, and it reaches nobody."""
        _ip("link", "set", f"{self.name}-o", "down")

    def mend(self) -> None:
        """The cable is there again."""
        _ip("link", "set", f"{self.name}-o", "up")

    def lose(self) -> None:
        """It loses its power."""
        for running in self._running:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        self._running.clear()

    def wait_for(self, url: str, within_s: float = 120.0) -> None:
        """Wait until something answers at an address, as this machine's own processes reach it."""
        limit = time.monotonic() + within_s
        while True:
            with suppress(URLError, OSError):
                urlopen(url, timeout=2).close()
                return
            if time.monotonic() > limit:
                raise TimeoutError(f"{self.name} does not answer at {url}.")
            time.sleep(0.3)

    def _within(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *_APART, _OWN, "sh", *command]


class Network:
    """A bridge on this machine at `10.77.0.1`, and the hosts that hang on it, until it ends."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home, self.environment = home, {**environment, "HOME": str(home)}
        self._bridge = f"abl{os.getpid() % 10**6}"
        self._hosts: list[Host] = []
        self._stack = ExitStack()

    def __enter__(self) -> "Network":
        self._stack.__enter__()
        _ip("link", "add", self._bridge, "type", "bridge")
        self._stack.callback(_ip, "link", "delete", self._bridge)
        _ip("address", "add", "10.77.0.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in reversed(self._hosts):
            host.lose()
        self._stack.close()

    def host(self, name: str) -> Host:
        """Another host."""
        space = f"{self._bridge}-{name}"[:13]
        address = f"10.77.0.{len(self._hosts) + 2}"
        _ip("netns", "add", space)
        self._stack.callback(_ip, "netns", "delete", space)
        _ip("link", "add", f"{space}-o", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", f"{space}-o", "master", self._bridge, "up")
        for what in (
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", "10.77.0.1"),
        ):
            _ip("-n", space, *what)
        host = Host(space, address, self.home, self.environment)
        self._hosts.append(host)
        return host


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
