"""Processes of this machine, as /proc tells of them, and how they are ended."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["alive", "command", "descendants", "end", "parent"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command(pid: int) -> str:
    """A process's command line, or the title that it gave itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """The process that began it; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    found: list[int] = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def end(pids: list[int], sent: signal.Signals = signal.SIGKILL, within_s: float = 30.0) -> None:
    """Send a signal to processes and wait until they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sent)
    limit = time.monotonic() + within_s
    while any(map(alive, pids)):
        if time.monotonic() > limit:
            raise TimeoutError(f"{[command(pid) for pid in pids if alive(pid)]} did not end.")
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
