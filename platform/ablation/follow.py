"""Tell the tracker while a study runs, in a thread of its own: it stops and slows nothing.

What the tracker misses is not kept: the ledger has it, and `finish` repairs the mirror from it.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ablation.cells import Finished, Standing
from ablation.events import Event
from ablation.figure import draw
from ablation.storage import StorageError
from ablation.table import Table
from ablation.tracking import TRACKING_ERRORS, Mirror

__all__ = ["Follower"]


class Follower:
    """An observer that repeats what it hears in a mirror. `warn` is told of the first trouble."""

    def __init__(self, mirror: Mirror, warn: Callable[[str], None]) -> None:
        self._mirror = mirror
        self._warn = warn
        self._news: queue.Queue[Event | None] = queue.Queue()
        self._opened = False
        self._troubled = False
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take note of an event; returns at once."""
        if event.records:
            self._news.put(event)

    def finish(
        self, standings: Mapping[str, Standing], table: Table, texts: Mapping[str, str]
    ) -> bool:
        """Make the mirror whole, with the study's texts (`table.md` among them); if that worked."""
        self._news.put(None)
        self._thread.join()
        complete = all(isinstance(standing, Finished) for standing in standings.values())
        return (
            self._open()
            and self._try(self._mirror.sync, standings)
            and self._try(lambda: self._mirror.publish(texts, figure=draw(table)))
            and self._try(self._mirror.close, complete=complete)
        )

    def _follow(self) -> None:
        self._open()
        while (event := self._news.get()) is not None:
            # After trouble every try may take minutes: `finish` makes one, for all.
            if not self._troubled and self._open():
                self._try(self._mirror.log, event.digest, event.records)

    def _open(self) -> bool:
        self._opened = self._opened or self._try(self._mirror.open)
        return self._opened

    def _try(self, act: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
        try:
            act(*args, **kwargs)
        except (*TRACKING_ERRORS, StorageError) as error:
            if not self._troubled:
                self._warn(
                    f"MLflow at {self._mirror.uri} does not answer as it must "
                    f"({type(error).__name__}: {str(error).splitlines()[0]}). The study goes on, "
                    f"the ledger holds everything, and the next run repairs MLflow."
                )
            self._troubled = True
            return False
        return True
