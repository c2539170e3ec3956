"""One cell's stages in order: what trains, then what starts from it."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, assert_never

from ablation.cells import Cell, Failed, Finished, PlannedStage
from ablation.events import Observe
from ablation.execute import Result, execute, never, say_nothing, tell, unnoticed
from ablation.group import ALONE, Group
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer
from ablation.provenance import now_ms, provenance
from ablation.terms import Terms

__all__ = ["execute_cell"]


def execute_cell(
    cell: Cell,
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
) -> dict[str, Result]:
    """Bring a cell's stages to their ends in this process; what came of each, by digest."""
    terms, first = terms or Terms(), cell.stages[0]
    told = partial(tell, observe) if group.lead else say_nothing
    ledger = ledger.patient(terms.patience_s, partial(told, first, "paused"))
    run = partial(
        execute,
        trainer=trainer,
        ledger=ledger,
        place=place,
        observe=observe,
        should_stop=should_stop,
        notice=notice,
        terms=terms,
        group=group,
        origin=origin or provenance(trainer),
        clock=clock,
        now_ms=now_ms,
    )
    return _run_stages(cell, run, ledger=ledger, skipped=told)


def _run_stages(
    cell: Cell,
    run: Callable[[PlannedStage], Result],
    *,
    ledger: Ledger,
    skipped: Callable[..., None],
) -> dict[str, Result]:
    """Hand a cell's stages to `run` in order; what came of each that was begun, by digest.

    A stage whose parent did not finish is told of as skipped and not run, and after a stop none is.
    """
    results: dict[str, Result] = {}
    for stage in cell:
        if reason := _missing_parent(stage, cell, results, ledger=ledger):
            skipped(stage, "skipped", reason)
            continue
        results[stage.digest] = run(stage)
        if results[stage.digest] == "stopped":
            break
    return results


def _missing_parent(
    stage: PlannedStage, cell: Cell, results: Mapping[str, Result], *, ledger: Ledger
) -> str:
    """Why the stage cannot run; empty where it can."""
    if stage.parent is None:
        return ""
    result = results.get(stage.parent) or ledger.outcome(stage.parent)
    name = next((other.name for other in cell if other.digest == stage.parent), stage.parent)
    match result:
        case Finished():
            return ""
        case Failed():
            return f"not run: {name} failed"
        case None | "stopped" | "failed" | "busy":
            return f"not run: {name} has not finished"
        case _:
            assert_never(result)
