"""Drivers on one cluster take turns: each has as many cells at work as is its share just now.

They meet at an actor on the head. It can be lost with the head, for every driver says again and
again what it wants; one that says nothing for some seconds has ended.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.tune.search import Searcher

from ablation.executors.news import ON_HEAD
from ablation.shares import Claimant, shares

__all__ = ["Meeting", "Turns"]

_ASK_EVERY_S = 1.0
_ANSWER_WITHIN_S = 5.0
_SILENT_S = 15.0


class Meeting:
    """What drivers want; runs as an actor, of which a cluster has one."""

    def __init__(self) -> None:
        self._claimants: dict[str, tuple[float, Claimant]] = {}
        self._since: dict[str, float] = {}
        """From when on a driver has wanted a cell and had none."""

    def ask(self, claimant: Claimant) -> int:
        """How many cells a driver may have at work."""
        now = time.monotonic()
        self._claimants[claimant.name] = (now, claimant)  # a known name keeps its place
        if claimant.wants and not claimant.at_work:
            self._since.setdefault(claimant.name, now)
        else:
            self._since.pop(claimant.name, None)
        for name, (heard, _) in [*self._claimants.items()]:
            if now - heard > _SILENT_S:
                self.leave(name)
        # Where there is no part for all, the longest without one comes next: so it goes around.
        every = [each for _, each in self._claimants.values()]
        every.sort(key=lambda each: self._since.get(each.name, math.inf))
        return shares(every)[claimant.name]

    def leave(self, name: str) -> None:
        """Count on a driver no more."""
        self._claimants.pop(name, None)
        self._since.pop(name, None)


class Turns(Searcher):
    """Hands Tune one training after another, as soon as it is this driver's turn.

    `slots` says how many cells the cluster holds, `over` whether none from a number on is to begin
    any more, `most` is how many the driver wants at a time. Its share is asked for in a thread,
    while it is entered.
    """

    def __init__(
        self,
        count: int,
        *,
        name: str,
        priority: int,
        most: int | None,
        slots: Callable[[], int],
        over: Callable[[int], bool],
    ) -> None:
        super().__init__()
        self._count, self._next, self._at_work = count, 0, set[str]()
        self._name, self._priority, self._most = name, priority, most
        self._slots, self._over = slots, over
        self._share, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="turns", daemon=True)

    def __enter__(self) -> "Turns":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(_ANSWER_WITHIN_S)
        with suppress(Exception):  # the head may be lost; who says nothing soon counts no more
            _meeting().leave.remote(self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps its search to be restored, and that never is.
        return Searcher, ()

    def suggest(self, trial_id: str) -> Any:
        """The next training, None where it must wait; FINISHED after the last."""
        if self._next == self._count or self._over(self._next):
            return Searcher.FINISHED
        if len(self._at_work) >= self._share:
            return None
        self._at_work.add(trial_id)
        self._next += 1
        return {"group": self._next - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Count a training as at work no more."""
        self._at_work.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the next driver makes its list from the ledger."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""

    def _watch(self) -> None:
        while True:
            self._share = self._ask()
            if self._done.wait(_ASK_EVERY_S):
                return

    def _ask(self) -> int:
        most = max(1, self._count if self._most is None else self._most)
        try:
            slots, at_work = self._slots(), len(self._at_work)
            wants = min(most, self._count - self._next + at_work)
            mine = Claimant(
                name=self._name,
                priority=self._priority,
                wants=wants if slots else 0,
                slots=max(1, slots),
                at_work=at_work,
            )
            share = int(ray.get(_meeting().ask.remote(mine), timeout=_ANSWER_WITHIN_S))
            # Where no node has room for a cell, others have all, and one waits for such a node.
            return share if slots else 1
        except Exception:
            # It is lost with its head, and Ray raises what it likes: this must never wait for ever.
            return self._share or 1


def _meeting() -> Any:
    options = {"num_cpus": 0, "resources": ON_HEAD, "max_restarts": -1}
    return (
        ray.remote(Meeting)
        .options(
            name="turns",
            namespace="ablation",
            lifetime="detached",
            get_if_exists=True,
            **options,
        )
        .remote()
    )
