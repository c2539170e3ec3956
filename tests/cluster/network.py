"""Hosts on one machine: network namespaces on bridges, each with addresses of its own.

It needs root and `ip`. All that it makes is called `abl-…`, so that what a lab left that was killed
is found.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PREFIX", "Host", "Network", "sweep"]

PREFIX = "abl-"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@dataclass(slots=True)
class Network:
    """A bridge, with addresses of `subnet`; with `routed`, this machine is its way out."""

    name: str
    subnet: str
    """Three numbers, as `10.77.0`."""
    routed: bool = True
    _used: int = 1

    def __post_init__(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        if self.routed:
            _ip("address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    @property
    def bridge(self) -> str:
        return f"{PREFIX}{self.name}"[:15]

    @property
    def gateway(self) -> str:
        return f"{self.subnet}.1"

    def address(self) -> str:
        """One that no other host has."""
        self._used += 1
        return f"{self.subnet}.{self._used}"


@dataclass(slots=True)
class Host:
    """A machine on networks: `addresses` by their names."""

    name: str
    networks: Sequence[Network]
    addresses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ip("netns", "add", self.space)
        _ip("-n", self.space, "link", "set", "lo", "up")
        for number, network in enumerate(self.networks):
            self.addresses[network.name] = address = network.address()
            cable, inside = self._cable(number), f"eth{number}"
            peer = ("type", "veth", "peer", "name", inside, "netns", self.space)
            _ip("link", "add", cable, *peer)
            _ip("link", "set", cable, "master", network.bridge, "up")
            _ip("-n", self.space, "address", "add", f"{address}/24", "dev", inside)
            _ip("-n", self.space, "link", "set", inside, "up")
            if network.routed:
                _ip("-n", self.space, "route", "add", "default", "via", network.gateway)

    @property
    def space(self) -> str:
        """The network namespace."""
        return f"{PREFIX}{self.name}"

    def cut(self) -> None:
        """All cables are pulled: nobody reaches it, and it reaches nobody."""
        for number in range(len(self.networks)):
            _ip("link", "set", self._cable(number), "down")

    def mend(self) -> None:
        """The cables are there again."""
        for number in range(len(self.networks)):
            _ip("link", "set", self._cable(number), "up")

    def _cable(self, number: int) -> str:
        return f"{self.space}"[:13] + f".{number}"


def sweep() -> None:
    """Remove all hosts and networks."""
    for space in json.loads(_ip("-json", "netns", "list") or "[]"):
        if space["name"].startswith(PREFIX):
            _ip("netns", "delete", space["name"])
    for link in json.loads(_ip("-json", "link", "show", "type", "bridge") or "[]"):
        if link.get("ifname", "").startswith(PREFIX):
            _ip("link", "delete", link["ifname"])
