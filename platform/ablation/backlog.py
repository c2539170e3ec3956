"""How far a study is that others run: cells done, running and waiting, and when it may end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from ablation.attempts import Attempt
from ablation.cells import Begun, Cell, Failed, Finished, Standing
from ablation.ledger import Ledger
from ablation.plan import Plan
from ablation.why import span, took_s, work_lost

__all__ = ["Progress", "progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A study's cells by how they stand; times in seconds."""

    cells: int
    done: int
    failed: int
    running: int
    trained_s: float
    """Spent in attempts, the one at work left out."""
    recoveries: int
    """Attempts that went on after an interruption."""
    left_s: float | None
    """Until the end, if as many cells run as now; None where nothing tells."""

    def __str__(self) -> str:
        waiting = self.cells - self.done - self.failed - self.running
        parts = [f"{self.done} of {self.cells} cells done", f"{self.running} running"]
        parts += [f"{waiting} waiting"] if waiting else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{span(self.trained_s)} of work"] if self.trained_s else []
        if self.recoveries:
            parts.append(f"{self.recoveries} recover{'ies' if self.recoveries > 1 else 'y'}")
        if self.left_s:
            parts.append(f"about {span(self.left_s)} left")
        return ", ".join(parts)


def progress(plan: Plan, ledger: Ledger) -> Progress:
    """How far a study is, by the ledger alone."""
    standings, tries = ledger.standings(plan.stages), ledger.tries(plan.stages)
    working = {
        digest
        for digest, standing in standings.items()
        if not isinstance(standing, Finished | Failed) and ledger.stage(digest).beats()
    }
    states = [_state(cell, standings, working) for cell in plan.cells]
    lost = work_lost(tries)
    unended = sum(each[-1].ended in ("lost", "preempted") for each in tries.values() if each)
    running = states.count("running")
    return Progress(
        cells=len(states),
        done=states.count("done"),
        failed=states.count("failed"),
        running=running,
        trained_s=sum(took_s(attempt) for each in tries.values() for attempt in each),
        recoveries=lost.interruptions - unended,
        left_s=_left_s(plan, standings, tries, running),
    )


def _state(cell: Cell, standings: Mapping[str, Standing], working: set[str]) -> str:
    if cell.finished(standings):
        return "done"
    if cell.ended(standings):
        return "failed"
    return "running" if any(stage.digest in working for stage in cell) else "waiting"


def _left_s(
    plan: Plan,
    standings: Mapping[str, Standing],
    tries: Mapping[str, Sequence[Attempt]],
    running: int,
) -> float | None:
    """Seconds to the end, by what stages of the same name took; None where one is not known."""
    took: dict[str, list[float]] = {}
    for digest, stage in plan.stages.items():
        if isinstance(standings[digest], Finished) and tries[digest]:
            took.setdefault(stage.name, []).append(sum(map(took_s, tries[digest])))
    unended = [cell for cell in plan.cells if not cell.ended(standings)]
    left_s = 0.0
    for stage in {stage.digest: stage for cell in unended for stage in cell}.values():
        match standings[stage.digest]:
            case Finished() | Failed():
                continue
            case Begun(step, total):
                share = 1 - step / max(1, total)
            case _:
                share = 1.0
        if stage.name not in took:
            return None
        left_s += share * mean(took[stage.name])
    return left_s / max(1, running)
