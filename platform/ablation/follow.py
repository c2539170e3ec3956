"""Tell the tracker while a study runs, in a thread of its own: it stops and slows nothing.

What the tracker misses is not kept: the ledger has it. After trouble all of the ledger is repeated,
as often as it takes, and at the end once more. `repeat` tells all of it to a tracker at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from matplotlib.figure import Figure

from ablation.address import masked, public
from ablation.cells import Finished, Standing
from ablation.events import Event
from ablation.figure import draw
from ablation.journal import Record
from ablation.storage import StorageError
from ablation.table import Table

__all__ = ["Follower", "Tracker", "repeat"]

_log = logging.getLogger(__name__)
_MOST_HELD = 10_000
_STAGE_S = 1.0
"""Seconds that a tracker that is well may take for a stage at the end."""


class Tracker(Protocol):
    """Where a study is told of, as `ablation.tracking.Mirror` is; telling twice changes nothing."""

    @property
    def uri(self) -> str:
        """Where it is, with the keys to it."""
        ...

    def open(self) -> None:
        """Get ready, or ready again; it comes before all else."""
        ...

    def log(self, digest: str, records: Iterable[Record], /) -> None:
        """Tell new journal records of a stage."""
        ...

    def sync(self, standings: Mapping[str, Standing] | None = None, /) -> None:
        """Tell all that the ledger holds."""
        ...

    def publish(self, texts: Mapping[str, str], *, figure: Figure) -> None:
        """Show the study's texts and figure."""
        ...

    def close(self, *, complete: bool) -> None:
        """Say that the study is not being run any more."""
        ...


@dataclass(frozen=True, slots=True)
class _End:
    """What there is to tell at the end."""

    standings: Mapping[str, Standing]
    texts: Mapping[str, str]
    figure: Figure


@dataclass(slots=True)
class _News:
    """Records by stage, to be told; there are so many at most."""

    records: dict[str, list[Record]] = field(default_factory=dict)
    count: int = 0

    def add(self, event: Event) -> bool:
        """Keep an event's records; False where too many wait already."""
        if self.count > _MOST_HELD:
            return False
        self.records.setdefault(event.digest, []).extend(event.records)
        self.count += len(event.records)
        return True


class Follower:
    """An observer that repeats what it hears in a tracker. `say` is told of trouble and its end.

    `pauses_s` are the first and the longest pause before another try, in seconds; each is twice the
    one before. `patience_s` is how long `finish` waits, and a second more for every stage.
    """

    def __init__(
        self,
        tracker: Tracker,
        say: Callable[[str], None],
        *,
        pauses_s: tuple[float, float] = (5.0, 300.0),
        patience_s: float = 60.0,
    ) -> None:
        self._tracker, self._say, self._patience_s = tracker, say, patience_s
        self._first_pause_s, self._longest_pause_s = pauses_s
        self._pause_s = self._first_pause_s
        self._changed = threading.Condition()
        self._news = _News()
        self._due: float | None = None
        """When all is to be repeated; None while the tracker has all that was heard."""
        self._well_since: float | None = None
        self._end: _End | None = None
        self._voice = threading.Lock()
        self._told = False
        self._whole = False
        self._done = threading.Event()
        threading.Thread(target=self._follow, name="mirror", daemon=True).start()

    def __call__(self, event: Event) -> None:
        """Take note of an event; returns at once."""
        with self._changed:
            if event.records and self._due is None and self._end is None:
                if not self._news.add(event):
                    self._news, self._due = _News(), time.monotonic()
                self._changed.notify()

    def finish(
        self, standings: Mapping[str, Standing], table: Table, texts: Mapping[str, str]
    ) -> bool:
        """Make the tracker whole, with the study's texts (`table.md` among them); if that worked.

        A tracker that is too slow for that is left to itself.
        """
        figure = draw(table)
        with self._changed:
            self._end = _End(standings, texts, figure)
            self._changed.notify()
        patience_s = self._patience_s + _STAGE_S * len(standings)
        if self._done.wait(min(patience_s, threading.TIMEOUT_MAX)):
            return self._whole
        self._complain(f"is not up to date after {patience_s:.0f} s")
        return False

    def _follow(self) -> None:
        try:
            self._try(self._tracker.open)
            while (news := self._next()) is not None:
                if news.count:
                    self._try(partial(self._tell, news))
                else:
                    self._afresh(self._tracker.sync)
            if (end := self._end) is not None:
                self._whole = self._afresh(partial(_conclude, self._tracker, end))
        finally:
            self._done.set()

    def _next(self) -> _News | None:
        """News to be told; none of them where all is to be repeated; None at the end."""
        with self._changed:
            while self._end is None:
                if self._due is None and self._news.count:
                    news, self._news = self._news, _News()
                    return news
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    return _News()
                self._changed.wait(left)
        return None

    def _tell(self, news: _News) -> None:
        for digest, records in news.records.items():
            self._tracker.log(digest, records)

    def _afresh(self, act: Callable[[], None]) -> bool:
        """Open again after trouble, and act; what is heard meanwhile is told afterwards."""
        with self._changed:
            behind, self._due, self._news = self._due is not None, None, _News()
        if (behind and not self._try(self._tracker.open)) or not self._try(act):
            return False
        self._well_since = time.monotonic()
        with self._voice:
            if self._told:
                self._say(f"MLflow at {public(self._tracker.uri)} has caught up with the ledger.")
            self._told = False
        return True

    def _try(self, act: Callable[[], None]) -> bool:
        """Whether an act worked, and the tracker keeps up; else all is repeated later."""
        try:
            act()
        # Nothing that goes wrong here may touch a study.
        except Exception as error:
            self._fall_behind(_words(error, self._tracker.uri))
            return False
        with self._changed:
            keeps_up = self._due is None
        if not keeps_up:
            self._fall_behind("does not keep up with the study")
        return keeps_up

    def _fall_behind(self, how: str) -> None:
        now = time.monotonic()
        with self._changed:
            if self._well_since is not None and now - self._well_since >= self._longest_pause_s:
                self._pause_s = self._first_pause_s
            self._well_since = None
            self._news, self._due = _News(), now + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        self._complain(how)

    def _complain(self, how: str) -> None:
        with self._voice:
            if not self._told:
                self._say(
                    f"MLflow at {public(self._tracker.uri)} {how}. The study goes on, the ledger "
                    f"holds everything, and MLflow is tried again; what it lacks in the end, the "
                    f"next run or `ablation sync` repairs."
                )
            self._told = True


def repeat(
    tracker: Tracker, standings: Mapping[str, Standing], table: Table, texts: Mapping[str, str]
) -> str:
    """Tell a tracker all there is, however long it takes; why that failed, empty where it did not.

    `texts` are the study's, `table.md` among them.
    """
    try:
        tracker.open()
        _conclude(tracker, _End(standings, texts, draw(table)))
    except Exception as error:
        return _words(error, tracker.uri)
    return ""


def _conclude(tracker: Tracker, end: _End) -> None:
    tracker.sync(end.standings)
    tracker.publish(end.texts, figure=end.figure)
    complete = all(isinstance(standing, Finished) for standing in end.standings.values())
    tracker.close(complete=complete)


def _words(error: Exception, uri: str) -> str:
    """What is wrong with the tracker at a URI.

    Its drivers raise what they raise, which nobody can list.
    """
    _log.debug("The tracker failed.", exc_info=error)
    line = masked(next(iter(str(error).splitlines()), ""), uri)
    how = "cannot be told" if isinstance(error, StorageError) else "does not answer as it must"
    return f"{how} ({type(error).__name__}: {line})"
