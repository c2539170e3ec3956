"""One stage in whatever process it is called in, and one cell's stages in order.

A stage is a loop over the trainer's generator: journal the step, commit a checkpoint now and then,
tell the observer, look whether to stop. Every worker of a group runs the same loop, from one
`resume_step` that its driver took from `StageFolder.resume_step` before; the lead alone writes.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, assert_never

from ablation.cells import Cell, Failed, Finished, Outcome, PlannedStage
from ablation.commits import Restored
from ablation.events import Event, Observe
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer
from ablation.provenance import now_ms, provenance
from ablation.worker import Lead, Signals, Steps, follow

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
    `resume_step` None is the newest sound checkpoint. `should_stop` is asked at the start, and with
    `save_now` (commit and go on) after each step, in every worker: both may be collective. Commits
    come every `checkpoint_every_s` (0: each step), later where they would take a tenth of the time.
    """
    if (outcome := ledger.outcome(stage.digest)) is not None:
        return _ended(stage, outcome, ledger, observe=observe if lead else None)
    if should_stop():
        return None
    signals = Signals(should_stop=should_stop, save_now=save_now)
    begin = partial(_begin, stage, trainer=trainer, ledger=ledger, place=place, signals=signals)
    with TemporaryDirectory(prefix="ablation-") as scratch:
        restored, steps = begin(Path(scratch), resume_step=resume_step)
        if not lead:
            return follow(steps, signals)
        record = partial(Lead, stage=stage, folder=ledger.stage(stage.digest), restored=restored)
        paced = partial(record, checkpoint_every_s=checkpoint_every_s, clock=clock, now_ms=now_ms)
        origin = origin or provenance(trainer)
        return paced(signals=signals, observe=observe).run(steps, workers=workers, origin=origin)


def _ended(
    stage: PlannedStage, outcome: Outcome, ledger: Ledger, *, observe: Observe | None
) -> Outcome:
    if observe is not None:
        ledger.writer(stage.digest).tidy()
        observe(_skipped(stage, _before(outcome)))
    return outcome


def _begin(
    stage: PlannedStage,
    scratch: Path,
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    signals: Signals,
    resume_step: int | None,
) -> tuple[Restored | None, Steps]:
    """What the stage goes on from, and its steps from there."""
    restored = ledger.stage(stage.digest).restore(scratch / "resume", step=resume_step)
    inputs = ledger.artifacts(stage.parent, scratch / "inputs") if stage.parent else None
    return restored, trainer.stages()[stage.name].run(
        stage.config,
        seed=stage.seed,
        place=place,
        inputs=inputs,
        resume=restored.folder if restored else None,
        should_stop=signals.stopped,
    )


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
