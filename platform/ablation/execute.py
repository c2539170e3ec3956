"""One stage in whatever process it is called in, and one cell's stages in order.

A stage is a loop over the trainer's generator: journal the step, commit a checkpoint now and then,
tell the observer, look whether to stop. Every worker of a group runs the same loop; the lead alone
writes.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, assert_never

from ablation.cells import Cell, Failed, Finished, Outcome, PlannedStage
from ablation.events import Event, Observe
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer
from ablation.provenance import now_ms, provenance
from ablation.worker import Lead, Signals, follow

__all__ = ["execute", "execute_cell", "never", "run_stages"]


def never() -> bool:
    """The answer to `should_stop` and `save_now` where nobody asks for either."""
    return False


def execute(
    stage: PlannedStage,
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    observe: Observe,
    should_stop: Callable[[], bool],
    lead: bool = True,
    resume_step: int | None = None,
    workers: int = 1,
    checkpoint_every_s: float = 30.0,
    save_now: Callable[[], bool] = never,
    origin: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    now_ms: Callable[[], int] = now_ms,
) -> Outcome | None:
    """Bring a stage from where the ledger stands to its end; None where it was stopped.

    A stage that has ended is not run again. An exception of the trainer ends it as Failed; those
    of the storage and the observer pass, and so do all of a worker that is not the lead.

    A group of `workers` calls this with one `resume_step`, taken by its driver from
    `ledger.stage(digest).resume_step()` before they start; None, for a worker alone, is the newest
    sound checkpoint. `should_stop` is asked once at the start, and with `save_now` (commit and go
    on, as before a preemption) once after each step, in every worker: both may be collective.
    `checkpoint_every_s` stretches where commits would take over a tenth of the time; 0 commits
    after every step. `origin` is the attempt's provenance (None: gathered here).
    """
    signals = Signals(should_stop=should_stop, save_now=save_now)
    folder = ledger.stage(stage.digest)
    if (outcome := folder.outcome()) is not None:
        if lead:
            ledger.writer(stage.digest).tidy()
            observe(_skipped(stage, _before(outcome)))
        return outcome
    if should_stop():
        return None
    with TemporaryDirectory(prefix="ablation-") as scratch:
        restored = folder.restore(Path(scratch, "resume"), step=resume_step)
        steps = trainer.stages()[stage.name].run(
            stage.config,
            seed=stage.seed,
            place=place,
            inputs=ledger.artifacts(stage.parent, Path(scratch, "inputs"))
            if stage.parent
            else None,
            resume=restored.folder if restored else None,
            should_stop=signals.stopped,
        )
        if not lead:
            return follow(steps, signals)
        return Lead(
            stage=stage,
            folder=folder,
            restored=restored,
            signals=signals,
            observe=observe,
            checkpoint_every_s=checkpoint_every_s,
            clock=clock,
            now_ms=now_ms,
        ).run(steps, workers=workers, origin=origin or provenance(trainer))


def execute_cell(
    cell: Cell,
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    observe: Observe,
    should_stop: Callable[[], bool],
    checkpoint_every_s: float = 30.0,
    origin: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    now_ms: Callable[[], int] = now_ms,
) -> dict[str, Outcome]:
    """Bring a cell's stages to their ends in this process; outcomes by digest, of those ended."""
    run = partial(
        execute,
        trainer=trainer,
        ledger=ledger,
        place=place,
        observe=observe,
        should_stop=should_stop,
        checkpoint_every_s=checkpoint_every_s,
        origin=origin or provenance(trainer),
        clock=clock,
        now_ms=now_ms,
    )
    return run_stages(cell, run, ledger=ledger, observe=observe)


def run_stages(
    cell: Cell,
    run: Callable[[PlannedStage], Outcome | None],
    *,
    ledger: Ledger,
    observe: Observe,
) -> dict[str, Outcome]:
    """Hand a cell's stages to `run` in order; outcomes by digest, of those that ended.

    A stage whose parent did not finish is told of as skipped and not run; a stage that was
    stopped (`run` gives None) is the last one.
    """
    outcomes: dict[str, Outcome] = {}
    for stage in cell:
        if reason := _missing_parent(stage, cell, outcomes, ledger=ledger):
            observe(_skipped(stage, reason))
        elif outcome := run(stage):
            outcomes[stage.digest] = outcome
        else:
            break
    return outcomes


def _missing_parent(
    stage: PlannedStage, cell: Cell, outcomes: Mapping[str, Outcome], *, ledger: Ledger
) -> str:
    """Why the stage cannot run; empty where it can."""
    if stage.parent is None:
        return ""
    outcome = outcomes.get(stage.parent) or ledger.outcome(stage.parent)
    name = next((other.name for other in cell if other.digest == stage.parent), stage.parent)
    match outcome:
        case Finished():
            return ""
        case Failed():
            return f"not run: {name} failed"
        case None:
            return f"not run: {name} has not finished"
        case _:
            assert_never(outcome)


def _before(outcome: Outcome) -> str:
    return "finished before" if isinstance(outcome, Finished) else f"failed before: {outcome.error}"


def _skipped(stage: PlannedStage, message: str) -> Event:
    return Event(digest=stage.digest, name=stage.name, kind="skipped", message=message)
