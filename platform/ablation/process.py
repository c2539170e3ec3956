"""Which process this is, and whether another one on this machine still runs."""

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "this_process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process: where process numbers count (a boot of a machine, a container), number, birth."""

    host: str
    pid: int
    born: str
    """When it began, in the machine's own ticks; empty where the system does not tell."""

    def gone(self, me: "Process") -> bool | None:
        """Whether it has ended; None where that cannot be seen from `me`."""
        if self.host != me.host:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another user's
            return False
        return self.born != _born(self.pid)


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    return Process(host=_host(), pid=pid, born=_born(pid))


def _host() -> str:
    """A name for the machine since it was started, and the container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux; names of machines are not unique, but addresses of cards are
        return f"{socket.gethostname()}/{uuid.getnode():012x}"


def _born(pid: int) -> str:
    """Start time of a process; a zombie, which only waits to be forgotten, has none."""
    try:
        # What follows the command's name, which may hold anything, in brackets.
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after[0] == "Z" else after[19]
