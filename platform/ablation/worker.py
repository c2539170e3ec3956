"""What a worker does with the steps of a stage: the lead records them, the others only do them."""

import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, assert_never

from ablation.attempts import Attempt
from ablation.cells import Failed, Finished, Outcome, PlannedStage
from ablation.commits import Restored
from ablation.events import Event, EventKind, Observe
from ablation.journal import Record
from ablation.manifest import DamageError
from ablation.protocol import Progress, Result
from ablation.stage_folder import StageFolder
from ablation.stage_writer import StageWriter

__all__ = ["Lead", "Signals", "Steps", "follow"]

Steps: TypeAlias = Generator[Progress, None, Result | None]
"""A trainer's stage at work."""

_PATIENCE = 9.0  # a commit of t seconds is followed by 9 t without: at most 10 % of the time


class _TrainerError(Exception):
    """The trainer raised, or broke the protocol, as `__cause__` says."""


@dataclass(slots=True, kw_only=True)
class Signals:
    """What is asked of a running stage; each question is put once after every step.

    The trainer hears of a stop through `stopped`: never before it was looked at here.
    """

    should_stop: Callable[[], bool]
    save_now: Callable[[], bool]
    stop: bool = False

    def look(self) -> bool:
        """Ask; whether the answers call for a commit."""
        save, stop = self.save_now(), self.should_stop()
        new, self.stop = stop and not self.stop, stop or self.stop
        return save or new

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self.stop


class _Watched:
    """Iterates over steps and keeps their result."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.result: Result | None = None

    def __iter__(self) -> Iterator[Progress]:
        self.result = yield from self.steps


def follow(steps: Steps, signals: Signals) -> Finished | None:
    """Do the steps and record nothing; None where the stage was stopped."""
    watched = _Watched(steps)
    with closing(steps):
        for _ in watched:
            signals.look()
    return None if watched.result is None else Finished(dict(watched.result.metrics))


@dataclass(slots=True, kw_only=True)
class Lead:
    """The worker of a stage that writes, in one attempt that goes on after `restored`."""

    stage: PlannedStage
    folder: StageFolder
    restored: Restored | None
    signals: Signals
    observe: Observe
    checkpoint_every_s: float
    clock: Callable[[], float]
    now_ms: Callable[[], int]
    step: int = 0
    total: int = 0
    pending: list[Record] = field(default_factory=list)
    """Records that no commit covers yet."""

    def run(self, steps: Steps, *, workers: int, origin: Mapping[str, Any]) -> Outcome | None:
        """Do the steps and record them, from the attempt's first word to its last."""
        if self.restored:
            self.step, self.total = self.restored.step, self.restored.total
        self.folder.describe(self.stage, origin)
        attempt = self.folder.begin_attempt(
            time_ms=self.now_ms(), from_step=self.step, workers=workers, provenance=origin
        )
        self._tell("resumed" if self.restored else "begun")
        writer = StageWriter(self.folder, after=self.restored)
        outcome: Outcome | None = None
        try:
            with closing(steps):
                result = self._record(steps, writer)
                outcome = self._end(result, writer, alone=workers == 1)
        except _TrainerError as trouble:
            outcome = self._fail(writer, trouble)
        except (KeyboardInterrupt, SystemExit):
            self._close(attempt, None)
            raise
        self._close(attempt, outcome)
        return outcome

    def _record(self, steps: Steps, writer: StageWriter) -> Result | None:
        known = self._known_times()
        due = self.clock() + self.checkpoint_every_s
        watched = _Watched(steps)
        for progress in _blamed(watched):
            self._note(progress, known)
            if self.signals.look() or self.clock() >= due:
                due = self._commit(progress, writer)
        return watched.result

    def _note(self, progress: Progress, known: Mapping[int, int]) -> None:
        if progress.step <= self.step:
            raise _TrainerError from ValueError(
                f"Steps must rise, got step {progress.step} after step {self.step}. A stage goes "
                f"on after the step that it saved in `resume`."
            )
        self.step, self.total = progress.step, progress.total
        metrics = {name: float(value) for name, value in progress.metrics.items()}
        if metrics:
            time_ms = known.get(self.step) or self.now_ms()
            self.pending.append(Record(self.step, time_ms, metrics))
        self._tell("progress", metrics=metrics)

    def _commit(self, progress: Progress, writer: StageWriter) -> float:
        """Commit the step; when the next commit is due."""
        began = self.clock()
        with TemporaryDirectory(prefix="ablation-") as folder:
            _call(progress.save, Path(folder))
            writer.commit(self.step, self.total, folder=Path(folder), records=self.pending)
        self._tell("committed", records=self._taken())
        ended = self.clock()
        every = self.checkpoint_every_s
        return ended + (max(every, _PATIENCE * (ended - began)) if every else 0.0)

    def _end(self, result: Result | None, writer: StageWriter, *, alone: bool) -> Outcome | None:
        if result is None:
            if alone and not self.signals.stop:
                raise _TrainerError from ValueError(
                    "A stage must return its result, got None although nothing asked it to stop."
                )
            self._tell("interrupted")
            return None
        metrics = {name: float(value) for name, value in result.metrics.items()}
        with TemporaryDirectory(prefix="ablation-") as folder:
            _call(result.export, Path(folder))
            finished = writer.finish(metrics, export=Path(folder), records=self.pending)
        self._tell("finished", metrics=metrics, records=self._taken())
        return finished

    def _fail(self, writer: StageWriter, trouble: _TrainerError) -> Failed:
        cause = trouble.__cause__
        detail = "".join(traceback.format_exception(cause))
        failed = writer.fail(f"{type(cause).__name__}: {cause}", detail)
        self._tell("failed", message=failed.error)
        return failed

    def _close(self, attempt: Attempt, outcome: Outcome | None) -> None:
        now = self.now_ms()
        match outcome:
            case None:
                self.folder.end_attempt(attempt, "interrupted", time_ms=now, step=self.step)
            case Finished():
                self.folder.end_attempt(attempt, "finished", time_ms=now, step=self.step)
            case Failed(error):
                self.folder.end_attempt(attempt, "failed", time_ms=now, step=self.step, error=error)
            case _:
                assert_never(outcome)

    def _known_times(self) -> dict[int, int]:
        """When steps were measured that are committed, yet to be done again after damage."""
        try:
            return {record.step: record.time_ms for record in self.folder.journal()}
        except DamageError:  # the restore has warned of it; the steps get new times
            return {}

    def _taken(self) -> tuple[Record, ...]:
        records = tuple(self.pending)
        self.pending.clear()
        return records

    def _tell(
        self,
        kind: EventKind,
        *,
        metrics: Mapping[str, float] | None = None,
        records: tuple[Record, ...] = (),
        message: str = "",
    ) -> None:
        self.observe(
            Event(
                digest=self.stage.digest,
                name=self.stage.name,
                kind=kind,
                step=self.step,
                total=self.total,
                metrics=metrics or {},
                records=records,
                message=message,
            )
        )


def _blamed(steps: Iterable[Progress]) -> Iterator[Progress]:
    """The same steps; what the trainer raises, and nothing else, becomes _TrainerError."""
    try:
        yield from steps
    except Exception as error:
        raise _TrainerError from error


def _call(write: Callable[[Path], None], folder: Path) -> None:
    try:
        write(folder)
    except Exception as error:
        raise _TrainerError from error
