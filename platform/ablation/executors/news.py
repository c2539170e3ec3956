"""Events on their way from workers to the driver, through a queue on the head node.

News can be lost with the node that carries it; the ledger is the truth, so nobody minds.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

from ray.exceptions import RayActorError
from ray.util.queue import Queue

from ablation.events import Event, Observe

__all__ = ["ON_HEAD", "Sender", "listening"]

ON_HEAD = {"node:__internal_head__": 0.001}
"""A trace of a resource that only a cluster's head node has."""

_PROGRESS_EVERY_S = 0.5
_LISTEN_EVERY_S = 0.25


class Sender:
    """Sends a worker's events to the driver, of progress no more than a person can follow."""

    def __init__(self, events: Queue) -> None:
        self._events = events
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        """Send an event, or drop it."""
        if event.kind == "progress":
            if (now := time.monotonic()) - self._last < _PROGRESS_EVERY_S:
                return
            self._last = now
        try:
            self._events.put(event)
        except RayActorError:  # nobody listens any more
            self._last = float("inf")


@contextmanager
def listening(observe: Observe) -> Generator[Queue]:
    """A queue whose events are passed on to the observer, in a thread, until the block ends."""
    events = Queue(actor_options={"num_cpus": 0, "resources": ON_HEAD})
    done = threading.Event()
    thread = threading.Thread(target=partial(_listen, events, observe, done.is_set), daemon=True)
    thread.start()
    try:
        yield events
    finally:
        done.set()
        thread.join()


def _listen(events: Queue, observe: Observe, done: Callable[[], bool]) -> None:
    while True:
        last = done()
        try:
            for event in events.get_nowait_batch(events.qsize()):
                observe(event)
        except RayActorError:
            return
        if last:
            return
        time.sleep(_LISTEN_EVERY_S)
