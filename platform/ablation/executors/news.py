"""Word between workers and the driver, by way of actors on the head node.

Events go to the driver through an inbox. On a board the driver posts who shall stop, and the
workers of a group post what they know of their machines' end, and whose exception came first. All
of it can be lost with the node that carries it; the ledger is the truth, so nobody minds.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from ablation.events import Event, Observe

__all__ = ["ON_HEAD", "Board", "Inbox", "Sender", "Word", "listening", "new_board"]

ON_HEAD = {"node:__internal_head__": 0.001}
"""A trace of a resource that only a cluster's head node has."""

_log = logging.getLogger(__name__)
_LASTING = {"num_cpus": 0, "resources": ON_HEAD, "max_restarts": -1}
_PROGRESS_EVERY_S = 0.5
_LISTEN_EVERY_S = 0.25
_ANSWER_WITHIN_S = 5.0
_LAST_WORDS = ("finished", "failed", "retried", "interrupted", "busy", "found", "skipped")
"""After these a process may end, and what it has not sent by then is gone."""


class Inbox:
    """Events for the driver, each worker's in their order; runs as an actor.

    Ray's own queue does not keep them in order: its actor is asyncio's, and on a busy machine what
    was sent first is often taken up later.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Keep an event until the driver asks."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """Hand over what has come since the driver asked last."""
        taken, self._events = self._events, []
        return taken


class Sender:
    """Sends a worker's events to the driver, of progress no more than a person can follow.

    Neither training nor its checkpoints wait for an answer, for an inbox whose node has just been
    lost gives none for some time; only a last word is waited for.
    """

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        """Send an event, or drop it."""
        if event.kind == "progress":
            if (now := time.monotonic()) - self._last < _PROGRESS_EVERY_S:
                return
            self._last = now
        sent = self._inbox.put.remote(event)
        if event.kind in _LAST_WORDS:
            with suppress(RayError):  # the inbox is lost, and comes back empty
                ray.get(sent, timeout=_ANSWER_WITHIN_S)


@contextmanager
def listening(observe: Observe) -> Generator[Any]:
    """An inbox whose events are passed on to the observer, in a thread, until the block ends."""
    inbox: Any = ray.remote(Inbox).options(**_LASTING).remote()
    done = threading.Event()
    thread = threading.Thread(target=partial(_listen, inbox, observe, done.is_set), daemon=True)
    thread.start()
    try:
        yield inbox
    finally:
        done.set()
        thread.join()
        ray.kill(inbox)


def _listen(inbox: Any, observe: Observe, done: Callable[[], bool]) -> None:
    while True:
        last = done()
        with suppress(RayError):  # an inbox that was lost comes back empty
            for event in ray.get(inbox.take.remote()):
                _pass_on(event, observe)
        if last:
            return
        time.sleep(_LISTEN_EVERY_S)


def _pass_on(event: Event, observe: Observe) -> None:
    try:
        observe(event)
    except (Exception, SystemExit):  # a terminal that is gone, and nobody else reads the inbox
        _log.exception("What happened to %s could not be shown.", event.name)


class Word(NamedTuple):
    """What the board says to a group."""

    stop: bool
    notice: str
    """What is announced to any of its nodes."""
    error: Exception | None
    """The first exception of any of its workers but the lead."""


class Board:
    """What groups of workers and the driver tell each other; runs as an actor."""

    def __init__(self) -> None:
        self._over: tuple[str, ...] = ()
        self._notices: dict[str, dict[str, str]] = {}
        self._errors: dict[str, Exception] = {}

    def stop(self, beginnings: Iterable[str]) -> None:
        """Ask the groups whose names begin so to save and end."""
        self._over = tuple({*self._over, *beginnings})

    def stopped(self, group: str) -> bool:
        """Whether a group was asked to end."""
        return group.startswith(self._over)

    def raised(self, group: str, error: Exception) -> None:
        """Post the exception of a worker that is not the lead."""
        self._errors.setdefault(group, error)

    def report(self, group: str, node: str, notice: str) -> Word:
        """Post that a group has a worker on a node, and what that worker was told of its end."""
        nodes = self._notices.setdefault(group, {})
        nodes[node] = notice or nodes.get(node, "")
        draining = ray._private.state.state.get_draining_nodes()
        told = [f"node {name[:8]} is being drained" for name in nodes if name in draining]
        told += [text for text in nodes.values() if text]
        return Word(self.stopped(group), "; ".join(told), self._errors.get(group))

    def forget(self, group: str) -> tuple[Exception | None, frozenset[str]]:
        """Drop what is known of a group that has ended; the first exception posted, its nodes."""
        return self._errors.pop(group, None), frozenset(self._notices.pop(group, {}))


def new_board() -> Any:
    """A board of its own actor, for a driver and its workers."""
    return ray.remote(Board).options(**_LASTING).remote()
