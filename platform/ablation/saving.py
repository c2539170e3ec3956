"""Checkpoints on their way to the storage, in the background: training waits only for the copy."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory, gettempdir
from types import TracebackType
from typing import Protocol

from ablation.journal import Record
from ablation.patience import BRIEF, IMPATIENT, Patience
from ablation.process import scratch_folder
from ablation.storage import LostStorageError

__all__ = ["Saving", "filled_scratch"]

_log = logging.getLogger(__name__)
_NO_ROOM = 1 << 16
"""Bytes: a disk that has fewer is full."""


class _Commit(Protocol):
    def __call__(
        self, step: int, total: int, /, *, folder: Path, records: Sequence[Record]
    ) -> None: ...


@dataclass(slots=True, kw_only=True)
class Saving:
    """Saves one state at a time. What goes wrong in the background is raised at the next call.

    `commit` makes a folder permanent; `committed` is told of it, in the background too. The block
    ends when nothing is under way any more. Only an interrupt does not wait for that: `left` is
    told where it leaves a commit under way.
    """

    commit: _Commit
    committed: Callable[[int, int, tuple[Record, ...]], None]
    left: Callable[[], None]
    patience: Patience = IMPATIENT
    _under_way: "Future[None] | None" = None

    def save(
        self,
        step: int,
        total: int,
        *,
        write: Callable[[Path], None],
        records: Sequence[Record],
    ) -> None:
        """Write a state into a folder of its own now, and see to its commit later."""
        self.wait()
        folder = filled_scratch(self.patience, write)
        self._under_way = _in_background(partial(self._finish, step, total, folder, tuple(records)))

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        if self._under_way is not None and self._under_way.done():
            self.wait()
        return self._under_way is not None

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._under_way is not None:
            self._under_way.exception()  # waits; an interrupt leaves it under way
            done, self._under_way = self._under_way, None
            done.result()

    def __enter__(self) -> "Saving":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is under way is let finish, so that it is no other attempt's concern.
        try:
            if error is None:
                self.wait()
            elif self._under_way is not None:
                wait([self._under_way], None if isinstance(error, Exception) else BRIEF.seconds)
        finally:
            if self._under_way is not None:
                self._part_with(self._under_way)

    def _part_with(self, under_way: "Future[None]") -> None:
        if not under_way.done():
            _log.warning("The last checkpoint is still being written, and is not waited for.")
            self.left()
        elif (trouble := under_way.exception()) is not None:
            _log.warning("The last checkpoint was not saved: %s", trouble)

    def _finish(
        self,
        step: int,
        total: int,
        folder: "TemporaryDirectory[str]",
        records: tuple[Record, ...],
    ) -> None:
        with folder:
            self.commit(step, total, folder=Path(folder.name), records=records)
        self.committed(step, total, records)


def _nothing(folder: Path) -> None:
    """Leave it empty."""


def filled_scratch(
    patience: Patience, write: Callable[[Path], None] = _nothing
) -> "TemporaryDirectory[str]":
    """A scratch folder that `write` has filled; room on its disk is waited for as for a storage.

    Raises LostStorageError where no room was made in time.
    """
    waits, folder = patience.waits(), None
    while True:
        try:
            folder = scratch_folder()
            write(Path(folder.name))
        except BaseException as error:
            full = isinstance(error, Exception) and _for_want_of_room(error)
            if folder is not None:
                folder.cleanup()
            if not full:
                raise
            refusal = f"There must be room for what is to be saved in {gettempdir()}, got none."
            if not waits.wait(refusal):
                raise LostStorageError(refusal) from error
        else:
            waits.over()
            return folder


def _for_want_of_room(error: Exception) -> bool:
    """Whether a disk was full; torch does not say so."""
    known = {getattr(each, "errno", None) for each in (error, error.__cause__)}
    return bool(known & {ENOSPC, EDQUOT}) or disk_usage(gettempdir()).free < _NO_ROOM


def _in_background(act: Callable[[], None]) -> "Future[None]":
    """Act in a daemon thread: a pool's would keep a process that was told to end from its end."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            act()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="saving", daemon=True).start()
    return done
