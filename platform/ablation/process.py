"""Which process this is, and whether another one on this machine still runs.

Temporary folders bear the name of their process, for one that is killed leaves them behind.
"""

import hashlib
import os
import re
import shutil
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Annotated

from pydantic import Field

__all__ = ["Process", "scratch_folder", "sweep", "this_process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process: where process numbers count (a boot of a machine, a container), number, birth."""

    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    born: str
    """When it began, in the machine's own ticks; empty where the system does not tell."""

    def gone(self, me: "Process") -> bool | None:
        """Whether it has ended; None where that cannot be seen from `me`."""
        if self.host != me.host:
            return None
        try:
            os.kill(self.pid, 0)
            return self.born != _born(self.pid)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another user's
            return False
        except OSError:  # the system has no file left to look with
            return None


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    return Process(host=_host(), pid=pid, born=_born(pid))


def scratch_folder() -> "TemporaryDirectory[str]":
    """A temporary folder, which `sweep` removes where this process does not come to do so."""
    me = this_process()
    return TemporaryDirectory(prefix=f"{_scratch_on(me.host)}{me.pid}-{me.born}-")


def sweep() -> None:
    """Remove what processes of this user that have ended here left of their scratch folders."""
    me = this_process()
    for folder in Path(gettempdir()).glob(f"{_scratch_on(me.host)}*"):
        named = re.fullmatch(r"(\d+)-(\d*)-\w+", folder.name.removeprefix(_scratch_on(me.host)))
        with suppress(OSError):  # another one sweeps too
            if named and folder.lstat().st_uid == os.geteuid():
                owner = Process(host=me.host, pid=int(named[1]), born=named[2])
                if owner.gone(me):
                    shutil.rmtree(folder, ignore_errors=True)


def _scratch_on(host: str) -> str:
    return f"ablation-{hashlib.sha256(host.encode()).hexdigest()[:8]}-"


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
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return ""
    return "" if after[0] == "Z" else after[19]
