"""Ctrl-C and SIGTERM while a study runs: the first asks it to save and end, the second ends it."""

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["stoppable"]

_AT_ONCE_S = 1.0
"""Batch systems signal every process, and a supervisor passes on what it gets: that is one stop."""


@contextmanager
def stoppable(grace_s: float, say: Callable[[str], None]) -> Generator[Callable[[], bool]]:
    """Whether a stop was asked for, to be asked inside the block.

    A later signal, and the end of `grace_s` seconds after the first, raise KeyboardInterrupt in
    the main thread.
    """
    asked, woken, over = (threading.Event() for _ in range(3))
    main = threading.main_thread().ident
    assert main is not None

    at_once_until = 0.0

    def answer(signum: int, frame: FrameType | None) -> None:
        nonlocal at_once_until
        if not asked.is_set():
            at_once_until = time.monotonic() + min(_AT_ONCE_S, grace_s)
            asked.set()
            woken.set()
        elif time.monotonic() >= at_once_until:
            raise KeyboardInterrupt

    def wait_for_the_end() -> None:
        woken.wait()
        if over.is_set():
            return
        with suppress(Exception, SystemExit):  # a terminal that is gone
            say(
                f"Stopping after the next checkpoint, within {grace_s:g} s. Once more ends it at "
                f"once."
            )
        if not over.wait(grace_s):
            # To the thread itself: a signal to the process may leave its main thread asleep.
            signal.pthread_kill(main, signal.SIGINT)

    if threading.get_ident() != main:  # only that may take signals
        yield asked.is_set
        return
    # What a handler interrupts may hold any lock, so it neither writes nor starts a thread.
    threading.Thread(target=wait_for_the_end, name="grace", daemon=True).start()
    before = {each: signal.signal(each, answer) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        over.set()
        woken.set()
        for each, handler in before.items():
            signal.signal(each, handler)
