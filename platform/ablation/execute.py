"""One stage in whatever process it is called in.

A stage is a loop over the trainer's generator: journal the step, commit a checkpoint now and then,
tell the observer, look whether to stop. Every worker of a group runs the same loop from the same
step; the lead alone holds the stage's lease, decides, and writes.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any, TypeAlias, cast

from ablation.cells import Finished, Outcome, PlannedStage
from ablation.commits import Restored
from ablation.events import Event, EventKind, Observe
from ablation.group import ALONE, Group, GroupOverError
from ablation.lease import Claim, Lease, LostLeaseError, acquire
from ablation.ledger import Ledger
from ablation.manifest import DamageError
from ablation.process import sweep
from ablation.protocol import Place, Trainer
from ablation.provenance import now_ms, provenance
from ablation.retries import enough, pause_s, run_of
from ablation.saving import filled_scratch
from ablation.signals import Signals
from ablation.stage_folder import StageFolder
from ablation.steps import Steps, begun, follow
from ablation.terms import Terms
from ablation.worker import Lead, Left

__all__ = ["Result", "execute", "never", "say_nothing", "tell", "unnoticed"]

Result: TypeAlias = Outcome | Left
"""What comes of a stage."""


def never() -> bool:
    """The answer to `should_stop` where nobody asks for it."""
    return False


def unnoticed() -> str:
    """The notice where none can come."""
    return ""


def execute(
    stage: PlannedStage,
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    observe: Observe,
    should_stop: Callable[[], bool] = never,
    notice: Callable[[], str] = unnoticed,
    terms: Terms | None = None,
    group: Group = ALONE,
    origin: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    now_ms: Callable[[], int] = now_ms,
) -> Result:
    """Bring a stage from where the ledger stands to its end, or say why it was left.

    A stage that has ended is not run again, and one that another process holds is left to it. An
    exception of the trainer ends an attempt; `retries` says whether another follows. Those of the
    storage, once `terms.patience_s` is over, and of the observer pass. The lead alone is asked,
    once at the start, after each step, and while a trainer prepares its first one: a new notice is
    answered by a commit, a stop by a commit and an end.

    Raises GroupOverError in the lead of a group that must end with this stage.
    """
    terms = terms or Terms()
    told = partial(tell, observe, stage) if group.lead else say_nothing
    work = _Work(
        stage=stage,
        trainer=trainer,
        ledger=ledger.patient(terms.patience_s, partial(told, "paused")),
        place=place,
        terms=terms,
        group=group,
        observe=observe,
        tell=told,
        signals=Signals(should_stop=should_stop, notice=notice),
        origin=origin,
        clock=clock,
        now_ms=now_ms,
    )
    sweep()
    while (result := work.attempt()) == "failed":
        pass
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One worker at one stage, for as many attempts as it takes."""

    stage: PlannedStage
    trainer: Trainer
    ledger: Ledger
    place: Place
    terms: Terms
    group: Group
    observe: Observe
    tell: Callable[[EventKind, str], None]
    signals: Signals
    origin: Mapping[str, Any] | None
    clock: Callable[[], float]
    now_ms: Callable[[], int]

    def attempt(self) -> Result:
        """Try the stage once, from where the ledger stands."""
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(filled_scratch(self.ledger.storage.patience)))
            lease: Lease | None = None
            restored: Restored | None = None
            result: Result | None = None
            if self.group.lead:
                opened = self._open()
                if isinstance(opened, Lease):
                    lease = opened
                    stack.callback(lease.release)
                    restored = self._restore(scratch, step=None)
                else:
                    result = opened
            # Workers must all do the same from the same step on, so the lead alone looked.
            told, step = self.group.share((result, restored.step if restored else 0))
            if told is not None:
                return result or cast(Result, told)
            if lease is None:
                restored = self._copied(scratch, step)
            self.group.share(None)  # the lead deletes old checkpoints: first all have theirs
            if lease is None:
                return self._follow(scratch, restored)
            return self._lead(lease, restored, scratch)

    def _open(self) -> Result | Lease:
        """The lease of a stage that is to be worked on, or how it stands else."""
        stage, ledger, folder = self.stage, self.ledger, self.ledger.stage(self.stage.digest)
        ledger.check()
        if (outcome := ledger.outcome(stage.digest)) is not None:
            ledger.writer(stage.digest).tidy()
            self.tell("found", _before(outcome))
            return outcome
        if self.signals.should_stop():
            return "stopped"
        held = acquire(
            folder.storage,
            folder.at("lease"),
            run=self.terms.driver,
            now_ms=self.now_ms,
            hear=self.signals.notice,
        )
        if isinstance(held, Claim):
            self.tell("busy", f"another process is at it ({held.process.pid})")
            return "busy"
        try:
            with ExitStack() as stack:
                stack.callback(held.release)
                ended = self._bury(held)
                if ended is None:
                    stack.pop_all()
        except LostLeaseError as error:
            self.tell("busy", str(error))
            return "busy"
        return ended or held

    def _bury(self, lease: Lease) -> Outcome | None:
        """Record how attempts ended that could not; the stage's outcome where that ends it."""
        folder = self.ledger.stage(self.stage.digest)
        if (outcome := folder.outcome()) is not None:  # since it was looked at
            self.tell("found", _before(outcome))
            return outcome
        folder.bury(lease.dead, raised=self.group.raised, run=self.terms.run)
        attempts = folder.attempts()
        mine = [a for a in attempts if run_of(a.run) == run_of(self.terms.run)]
        self._wait(pause_s(mine))
        if not mine or mine[-1] is not attempts[-1]:
            return None
        if mine[-1].ended == "lost" and mine[-1].run != self.terms.run:
            return None
        terms, last = self.terms, mine[-1]
        reason = enough(mine, max_failures=terms.max_failures, patience_s=terms.patience_s)
        if reason is None:
            return None
        error = f"{last.error} (not tried again: {reason})" if last.error else f"Lost: {reason}."
        failed = self.ledger.writer(self.stage.digest).fail(error, guard=lease.check)
        self.tell("failed", failed.error)
        return failed

    def _wait(self, seconds: float) -> None:
        """Wait for what the stage needs and what was away, unless a stop is asked for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.signals.should_stop():
            time.sleep(min(1.0, seconds))

    def _restore(self, scratch: Path, *, step: int | None) -> Restored | None:
        folder = self.ledger.stage(self.stage.digest)
        say = partial(self.tell, "damaged")
        return folder.restore(scratch / "resume", step=step, say=say)

    def _copied(self, scratch: Path, step: int) -> Restored | None:
        restored = self._restore(scratch, step=step)
        if restored is None:
            return None
        return replace(restored, folder=copytree(restored.folder, scratch / "copied"))

    def _steps(self, scratch: Path, restored: Restored | None, stop: Callable[[], bool]) -> Steps:
        stage, inputs = self.stage, None
        if stage.parent:
            try:
                inputs = self.ledger.artifacts(stage.parent, scratch / "inputs")
            except DamageError as error:
                return _spoilt(error, self.ledger.stage(stage.parent))
        begin = partial(
            self.trainer.stages()[stage.name].run,
            stage.config,
            seed=stage.seed,
            place=self.place,
            inputs=inputs,
            resume=restored.folder if restored else None,
            should_stop=stop,
        )
        return begun(begin)

    def _follow(self, scratch: Path, restored: Restored | None) -> Result:
        try:
            return follow(self._steps(scratch, restored, never))
        except Exception as error:
            self.group.blame(error)  # the lead is to hear of it
            raise

    def _lead(self, lease: Lease, restored: Restored | None, scratch: Path) -> Result:
        signals, folder = replace(self.signals, stop=False), self.ledger.stage(self.stage.digest)
        lead = Lead(
            stage=self.stage,
            folder=folder,
            lease=lease,
            restored=restored,
            signals=signals,
            observe=self.observe,
            terms=self.terms.since(folder.attempts()),
            blame=self.group.blame,
            clock=self.clock,
            now_ms=self.now_ms,
        )
        result: Result
        try:
            result = lead.run(
                self._steps(scratch, restored, signals.stopped),
                workers=self.group.workers,
                origin=self.origin or provenance(self.trainer),
            )
        except LostLeaseError as error:
            self.tell("busy", str(error))
            result = "busy"
        if self.group.workers > 1 and not isinstance(result, Finished):
            raise GroupOverError(f"{self.stage.name} was left: {result}")
        return result


class _SpoiltError(Exception):
    """What a stage starts from is damaged."""

    retry = False


def _spoilt(error: DamageError, parent: StageFolder) -> Steps:
    """The steps of a stage whose parent's artifacts are damaged."""
    raise _SpoiltError(
        f"{error} Delete {parent.storage.uri}/{parent.path} to have that stage done again."
    ) from error
    yield


def _before(outcome: Outcome) -> str:
    return "finished before" if isinstance(outcome, Finished) else f"failed before: {outcome.error}"


def tell(observe: Observe, stage: PlannedStage, kind: EventKind, message: str) -> None:
    """Tell an observer of a stage."""
    observe(Event(digest=stage.digest, name=stage.name, kind=kind, message=message))


def say_nothing(*_: object) -> None:
    """Only the lead of a group speaks."""
