"""A driver that is begun again where it, or a cell, is lost: killed, or cut from its cluster."""

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ablation.process import scratch_folder

__all__ = [
    "AGAIN",
    "BEGUN",
    "FAILED",
    "LOST",
    "RUN",
    "is_begun",
    "note_begun",
    "run_name",
    "supervise",
]

FAILED = 3
"""What a supervised driver ends with where a cell failed: with 1 end crashes too, Ray's among them
where it has lost its head node."""

RUN = "ABLATION_RUN"
"""The variable that names one run to all drivers of a supervisor, so that what failed under each
counts."""

BEGUN = "ABLATION_BEGUN"
"""The variable that names a file which a supervisor's first driver makes when the ledger is there:
for the next ones a storage without it is a disk that is not mounted, and no new ledger."""

AGAIN = "ABLATION_AGAIN"
"""The variable that tells a driver that no person has begun it: what was stopped stays so."""

LOST = "ABLATION_LOST"
"""The variable that tells a supervisor that there was another, which was lost."""

_WRONG_INPUT = 2
"""Where a driver was lost before, the input was right, and its cluster is not back yet."""

_ENDS = {0: 0, FAILED: 1, _WRONG_INPUT: 2, 130: 130}
"""What a driver ends with by itself, and what the supervisor then does; with anything else, the
driver was lost."""

_STEADY_S = 300.0
"""A driver that lived so long is begun again after the shortest pause."""

_MOST_IN_VAIN, _MOST_REFUSED = 10, 1440
"""So many drivers in a row that soon ended by themselves, and alike, are enough: it will stay so.
Those who find no cluster, which may come back, may be as many as begin in a day."""


def run_name(*, inline: bool) -> str:
    """A name as `retries.run_of` reads it: the supervisor's, and behind a dot the driver's own.

    Drivers that do the work themselves have none of their own, for there the death of a driver is
    a stage's doing.
    """
    run = os.environ.get(RUN) or secrets.token_hex(4)
    return run if inline else f"{run}.{secrets.token_hex(4)}"


def is_begun() -> bool:
    """Whether an earlier driver of the same supervisor has had its ledger."""
    mark = os.environ.get(BEGUN, "")
    return bool(mark) and Path(mark).exists()


def note_begun() -> None:
    """Say to later drivers of the same supervisor that the ledger is there."""
    if mark := os.environ.get(BEGUN):
        with suppress(OSError):  # of a supervisor that is gone
            Path(mark).touch()


def supervise(
    command: Sequence[str],
    say: Callable[[str], None],
    *,
    pauses_s: tuple[float, float] = (1.0, 60.0),
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run a driver until it ends by itself; its exit code. Ctrl-C and SIGTERM end it for good.

    One that ends with 75, for cells, the cluster or the storage were lost, or by an exception, is
    begun again too, but not for ever: then it is 75.

    `pauses_s` are the first and the longest pause before the command is begun again, in seconds;
    each is twice the one before.
    """
    first_s, longest_s = pauses_s
    scratch = scratch_folder()
    mark = str(Path(scratch.name) / "begun")
    environment = {**os.environ, RUN: secrets.token_hex(4), BEGUN: mark}
    if is_begun():
        Path(mark).touch()
    child: subprocess.Popen[bytes] | None = None
    stopped = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.set()
        # Ctrl-C reaches the child by the terminal; a second one would end it at once.
        if child is not None and signum == signal.SIGTERM:
            child.send_signal(signum)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    pause_s, lost, alike, before_it = first_s, LOST in os.environ, 0, 0
    try:
        while not stopped.is_set():
            began = clock()
            child = subprocess.Popen(command, env=environment)
            if stopped.is_set():  # since it was asked, and before there was a child to be told
                child.terminate()
            code = child.wait()
            environment[AGAIN] = "1"
            if code in _ENDS and not (code == _WRONG_INPUT and lost):
                return _ENDS[code]
            if stopped.is_set():
                break
            steady, lost = clock() - began > _STEADY_S, True
            alike = 0 if steady or code < 0 else alike + 1 if code == before_it else 1
            before_it = code
            if alike == (_MOST_REFUSED if code == _WRONG_INPUT else _MOST_IN_VAIN):
                say(f"The driver {_how(code)}, {alike} times in a row. It is left at that.")
                return code if code == _WRONG_INPUT else os.EX_TEMPFAIL
            pause_s = first_s if steady else pause_s
            say(f"The driver {_how(code)}. It begins again in {pause_s:.0f} s.")
            stopped.wait(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        return 130
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        scratch.cleanup()


def _how(code: int) -> str:
    if code == os.EX_TEMPFAIL:
        return "gave up what was lost"
    if code == _WRONG_INPUT:
        return "was refused"
    return f"was lost ({f'exit code {code}' if code > 0 else signal.Signals(-code).name})"
