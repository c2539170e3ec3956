"""What the lead of a stage's workers does with its steps: it records them, and decides."""

import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ablation.attempts import Attempt, Ended
from ablation.cells import Failed, Finished, Outcome, PlannedStage
from ablation.commits import Restored
from ablation.events import Event, EventKind, Observe
from ablation.journal import Record
from ablation.lease import NEAR_S, Lease
from ablation.manifest import DamageError
from ablation.patience import BRIEF
from ablation.protocol import Progress, Result
from ablation.retries import cause_of, enough, said
from ablation.saving import Saving, filled_scratch
from ablation.signals import Signals
from ablation.stage_folder import StageFolder
from ablation.stage_writer import StageWriter
from ablation.steps import Steps, TrainerError, Watched, blamed, called, numbers
from ablation.storage import StorageError
from ablation.terms import Terms

__all__ = ["Lead", "Left"]

Left: TypeAlias = Literal["stopped", "failed", "busy"]
"""Why a stage was left without an outcome: it was asked to stop, it failed and is to be tried
again, or another process holds it."""


@dataclass(slots=True, kw_only=True)
class Lead:
    """The worker of a stage that writes, in one attempt that goes on after `restored`."""

    stage: PlannedStage
    folder: StageFolder
    lease: Lease
    restored: Restored | None
    signals: Signals
    observe: Observe
    terms: Terms
    blame: Callable[[Exception], Exception]
    clock: Callable[[], float]
    now_ms: Callable[[], int]
    step: int = 0
    total: int = 0
    near_until: float = 0.0
    """Until then, by `clock`, this machine may end at any moment."""
    pending: list[Record] = field(default_factory=list)
    """Records that no commit covers yet."""

    def run(
        self,
        steps: Steps,
        *,
        workers: int,
        origin: Mapping[str, Any],
    ) -> Outcome | Left:
        """Do the steps and record them, from the attempt's first word to its last.

        Raises LostLeaseError where another process takes the stage over; it then wrote nothing
        more.
        """
        if self.restored:
            self.step, self.total = self.restored.step, self.restored.total
        self.folder.describe(self.stage, origin)
        attempt = self.folder.begin_attempt(
            time_ms=self.now_ms(),
            from_step=self.step,
            workers=workers,
            run=self.terms.run,
            queued_ms=self.terms.queued_ms,
            provenance=origin,
        )
        self.lease.say(attempt=attempt.number, step=self.step)
        self._tell("resumed" if self.restored else "begun")
        writer = StageWriter(self.folder, after=self.restored)
        try:
            with closing(steps):
                result = self._record(steps, writer)
                outcome = self._end(result, writer, attempt, alone=workers == 1)
        except TrainerError as trouble:
            cause = trouble.__cause__
            assert isinstance(cause, Exception)
            return self._fail(writer, attempt, self.blame(cause))
        except (KeyboardInterrupt, SystemExit):
            self.folder = replace(self.folder, storage=replace(self.folder.storage, patience=BRIEF))
            with suppress(StorageError):  # it will be found to be lost
                self._close(attempt, "interrupted")
            raise
        self._close(attempt, "interrupted" if outcome is None else "finished")
        return outcome or "stopped"

    def _record(self, steps: Steps, writer: StageWriter) -> Result | None:
        known = self._known_times()
        due = self.clock() + self.terms.pace.interval_s(0.0)
        watched = Watched(steps)
        commit = partial(writer.commit, guard=self.lease.check)
        with Saving(
            commit=commit,
            committed=self._committed,
            left=self.lease.let_expire,
            patience=self.folder.storage.patience,
        ) as saving:
            for progress in blamed(watched):
                self._note(progress, known)
                if self._look() or self._is_due(due, saving):
                    due = self._save(progress, saving)
            saving.wait()
        return watched.result

    def _is_due(self, due: float, saving: Saving) -> bool:
        """Whether to save now: a slow commit is waited for only when another would be overdue."""
        now = self.clock()
        return now >= due and (not saving.busy or now >= due + self.terms.pace.most_s)

    def _look(self) -> bool:
        """Whether something calls for a commit now."""
        before = self.signals.noticed
        new = self.signals.look()
        if self.signals.noticed != before:
            self.near_until = self.clock() + NEAR_S
            self.lease.warn(self.signals.noticed)
            self._tell("noticed", message=self.signals.noticed)
        if self.lease.lost:
            self.lease.check()
        return new

    def _note(self, progress: Progress, known: Mapping[int, int]) -> None:
        if progress.step <= self.step:
            raise TrainerError from ValueError(
                f"Steps must rise, got step {progress.step} after step {self.step}. A stage goes "
                f"on after the step that it saved in `resume`."
            )
        self.step, self.total = progress.step, progress.total
        self.lease.say(step=self.step)
        metrics = numbers(progress.metrics)
        if metrics:
            time_ms = known.get(self.step) or self.now_ms()
            self.pending.append(Record(self.step, time_ms, metrics))
        self._tell("progress", metrics=metrics)

    def _save(self, progress: Progress, saving: Saving) -> float:
        """Save the step; when the next one is due."""
        saving.wait()
        began = self.clock()
        write, records = partial(called, progress.save), self._taken()
        saving.save(self.step, self.total, write=write, records=records)
        ended = self.clock()
        interval = 0.0
        if ended >= self.near_until:
            self.lease.forget(self.signals.noticed)
            interval = self.terms.pace.interval_s(ended - began)
        if not interval:
            saving.wait()
        return ended + interval

    def _committed(self, step: int, total: int, records: tuple[Record, ...]) -> None:
        self._tell("committed", step=step, total=total, records=records)

    def _end(
        self, result: Result | None, writer: StageWriter, attempt: Attempt, *, alone: bool
    ) -> Finished | None:
        if result is None:
            if alone and not self.signals.stop:
                raise TrainerError from ValueError(
                    "A stage must return its result, got None although nothing asked it to stop."
                )
            self._tell("interrupted")
            return None
        metrics = numbers(result.metrics)
        write = partial(called, result.export)
        with filled_scratch(self.folder.storage.patience, write) as folder:
            finished = writer.finish(
                metrics,
                export=Path(folder),
                records=self.pending,
                last=replace(attempt, ended="finished", ended_ms=self.now_ms(), step=self.step),
                guard=self.lease.check,
            )
        self._tell("finished", metrics=metrics, records=self._taken())
        return finished

    def _fail(
        self, writer: StageWriter, attempt: Attempt, cause: Exception
    ) -> Failed | Literal["failed"]:
        """Record a failure; it is the stage's end where the rules say that it was enough."""
        error = said(cause)
        self.lease.check()
        self._close(attempt, "failed", cause=cause, error=error)
        reason = enough(
            self.folder.attempts(),
            max_failures=self.terms.max_failures,
            patience_s=self.terms.patience_s,
        )
        if reason is None:
            self._tell("retried", message=error)
            return "failed"
        detail = "".join(traceback.format_exception(cause))
        error = f"{error} (not tried again: {reason})"
        failed = writer.fail(error, detail, guard=self.lease.check)
        self._tell("failed", message=failed.error)
        return failed

    def _close(
        self,
        attempt: Attempt,
        how: Ended,
        *,
        cause: BaseException | None = None,
        error: str = "",
    ) -> None:
        self.folder.end_attempt(
            attempt,
            how,
            time_ms=self.now_ms(),
            step=self.step,
            cause=None if cause is None else cause_of(cause),
            error=error,
        )

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
        step: int | None = None,
        total: int | None = None,
        metrics: Mapping[str, float] | None = None,
        records: tuple[Record, ...] = (),
        message: str = "",
    ) -> None:
        self.observe(
            Event(
                digest=self.stage.digest,
                name=self.stage.name,
                kind=kind,
                step=self.step if step is None else step,
                total=self.total if total is None else total,
                metrics=metrics or {},
                records=records,
                message=message,
            )
        )
