"""Ctrl-C and SIGTERM while a study runs: the first asks it to save and end, the second ends it."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stoppable"]


@contextmanager
def stoppable(grace_s: float, say: Callable[[str], None]) -> Generator[Callable[[], bool]]:
    """Whether a stop was asked for, to be asked inside the block.

    A second signal, and the end of `grace_s` seconds after the first, raise KeyboardInterrupt in
    the main thread.
    """
    asked = threading.Event()
    main, signals = threading.main_thread(), (signal.SIGINT, signal.SIGTERM)

    def answer(signum: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        timer.start()
        say(f"Stopping after the next checkpoint, within {grace_s:g} s. Once more ends it at once.")

    timer = threading.Timer(grace_s, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    if threading.current_thread() is not main:  # only the main thread may take signals
        yield asked.is_set
        return
    before = {each: signal.signal(each, answer) for each in signals}
    try:
        yield asked.is_set
    finally:
        timer.cancel()
        for each, handler in before.items():
            signal.signal(each, handler)
