"""A driver that is begun again where it is lost: killed, out of memory, cut from its cluster."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import FrameType

__all__ = ["supervise"]

_ENDS = (0, 1, 2, 130)
"""What the command line ends with by itself; anything else is a driver that was lost."""

_LONGEST_WAIT_S = 60.0
_STEADY_S = 300.0
"""A driver that lived so long begins with the shortest wait again."""


def supervise(
    command: Sequence[str],
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run a command until it ends by itself; its exit code. Ctrl-C and SIGTERM are passed on."""
    child: subprocess.Popen[bytes] | None = None
    stopped = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if child is not None:
            child.send_signal(signum)

    # Ctrl-C reaches the child by the terminal already; a second one would end it at once.
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait_s = 1.0
    try:
        while True:
            began = clock()
            child = subprocess.Popen(
                command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
            )
            code = child.wait()
            if code in _ENDS or stopped:
                return code if code in _ENDS else 130
            wait_s = 1.0 if clock() - began > _STEADY_S else wait_s
            say(f"The driver was lost (exit code {code}). It begins again in {wait_s:.0f} s.")
            sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
