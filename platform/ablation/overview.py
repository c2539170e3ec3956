"""A plan and how it stands, for a terminal."""

from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ablation.cells import (
    GO_ON,
    Begun,
    Cell,
    Failed,
    Finished,
    PlannedStage,
    Standing,
    Stopped,
    Waiting,
)
from ablation.include import Included
from ablation.plain import plain
from ablation.plan import Plan
from ablation.why import Lost

__all__ = ["overview", "status", "totals"]


def overview(plan: Plan, standings: Mapping[str, Standing] | None) -> RenderableType:
    """What a study asks for: its rows, what sets them apart, and how much of it is done.

    `standings` None: that cannot be known, for the data are not at hand.
    """
    study = plan.study
    grid = Grid(box=box.SIMPLE_HEAD)
    for head in ("row", "what it sets", "seeds"):
        grid.add_column(head, overflow="fold")
    levels = {(axis.name, level.label): level for axis in study.axes for level in axis.levels}
    for row in study.rows:
        keys = [(axis.name, label) for axis, label in zip(study.axes, row.levels, strict=True)]
        sets = [f"{p}: {v}" for key in keys for p, v in levels[key].settings.items()]
        mark = " (baseline)" if row.label == study.baseline else ""
        grid.add_row(_said(row.label + mark), _said("\n".join(sets)), _seeds(study.seeds))
    for reference in study.references:
        grid.add_row(_said(f"{reference.label} (reference)"), "", _seeds(study.seeds))
    stages = plan.stages
    shared = plan.num_stages - len(stages)
    names = ", ".join([study.train, *(stage.name for stage in study.evaluations)])
    return Group(
        _said(study.name, style="bold"),
        *([_said(study.question)] if study.question else []),
        _said(f"trainer {study.trainer}, preset {study.preset}, metric {study.metric}"),
        grid,
        _said(
            f"{len(plan.cells)} cells of {names}: {len(stages)} stages"
            f"{f' ({shared} shared)' if shared else ''}, {_progress(stages, standings)}."
        ),
    )


def totals(
    included: Included, plans: Sequence[Plan], standings: Mapping[str, Standing] | None
) -> RenderableType:
    """What several studies come to together, with what they share and without it."""
    cells = [cell.stages[0].digest for plan in plans for cell in plan.cells]
    stages = {digest for plan in plans for digest in plan.stages}
    whole = sum(plan.num_stages for plan in plans)
    noun = "study" if len(plans) == 1 else "studies"
    return Group(
        _said(included.name, style="bold"),
        *([_said(included.question)] if included.question else []),
        _said(
            f"{len(plans)} {noun}: {len(cells)} cells, {len(set(cells))} of them different; "
            f"{whole} stages without sharing, {len(stages)} with it ({whole - len(stages)} saved), "
            f"{_progress(stages, standings)}."
        ),
    )


def _progress(stages: Collection[str], standings: Mapping[str, Standing] | None) -> str:
    if standings is None:
        return "how many are finished cannot be known without the data"
    done = sum(isinstance(standings[digest], Finished) for digest in stages)
    return f"{done} finished, {len(stages) - done} to run"


def status(plan: Plan, standings: Mapping[str, Standing], lost: Lost) -> RenderableType:
    """How every stage of every cell stands, the errors of those that failed, and the work lost."""
    names = list(dict.fromkeys(stage.name for cell in plan.cells for stage in cell.stages[1:]))
    grid = Grid("row", "seed", plan.study.train, *names, box=box.SIMPLE_HEAD)
    for cell in plan.cells:
        later = {stage.name: stage for stage in cell.stages[1:]}
        states = [_state(standings[stage.digest]) for stage in (cell.stages[0], *later.values())]
        grid.add_row(_said(cell.row), str(cell.seed), *states)
    failures = [
        _said(f"{cell.title}: {stage.name} failed: {standing.error}")
        for cell in plan.cells
        for stage, standing in _stands(cell, standings)
        if isinstance(standing, Failed)
    ]
    stopped = [
        _said(f"{cell.title} was stopped: {GO_ON}.")
        for cell in plan.cells
        if any(isinstance(standing, Stopped) for _, standing in _stands(cell, standings))
    ]
    work_lost = [_said(f"{lost}.")] if lost.interruptions else []
    return Group(_said(plan.study.name, style="bold"), grid, *failures, *stopped, *work_lost)


def _stands(cell: Cell, standings: Mapping[str, Standing]) -> list[tuple[PlannedStage, Standing]]:
    return [(stage, standings[stage.digest]) for stage in cell]


def _state(standing: Standing) -> Text:
    match standing:
        case Finished():
            return _said("finished", style="green")
        case Failed():
            return _said("failed", style="red")
        case Begun(step, total):
            return _said(f"{100 * step // max(total, 1)} %")
        case Waiting():
            return _said("waiting", style="dim")
        case Stopped():
            return _said(str(standing), style="yellow")
    assert_never(standing)


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _said(text: str, style: str = "") -> Text:
    return Text(plain(text), style)
