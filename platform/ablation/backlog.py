"""How far a study is that others run: cells done, running and waiting, and when it may end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from ablation.attempts import Attempt
from ablation.cells import Begun, Cell, Failed, Finished, Standing, Stopped
from ablation.lease import BEAT_S
from ablation.ledger import Ledger
from ablation.plan import Plan
from ablation.provenance import now_ms
from ablation.stops import standings_of
from ablation.why import span, took_s, work_lost

__all__ = ["Progress", "progress"]

_SILENT_S = 300.0
"""Who has said nothing for so long, by the clocks of both, counts as running no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A study's cells by how they stand; times in seconds."""

    cells: int
    done: int
    failed: int
    stopped: int
    running: int
    worked_s: float
    """Spent in attempts; of those at work what their beats tell."""
    trained_s: float
    """Of that in training."""
    recoveries: int
    """Attempts that went on after an interruption."""
    left_s: float | None
    """Until the end, if as many cells run as now; None where nothing tells yet."""

    def __str__(self) -> str:
        waiting = self.cells - self.done - self.failed - self.stopped - self.running
        parts = [f"{self.done} of {self.cells} cells done", f"{self.running} running"]
        parts += [f"{waiting} waiting"] if waiting else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.stopped} stopped"] if self.stopped else []
        if self.worked_s:
            parts.append(f"{span(self.worked_s)} of work ({span(self.trained_s)} of training)")
        if self.recoveries:
            parts.append(f"{self.recoveries} recover{'ies' if self.recoveries > 1 else 'y'}")
        if self.left_s is None:
            parts.append("no telling yet when it ends")
        elif self.left_s:
            parts.append(f"about {span(self.left_s)} left")
        return ", ".join(parts)


def progress(plan: Plan, ledger: Ledger) -> Progress:
    """How far a study is, by the ledger alone."""
    standings, tries = standings_of(plan, ledger), ledger.tries(plan.stages)
    unended = [
        d for d, standing in standings.items() if not isinstance(standing, Finished | Failed)
    ]
    claims = {digest: ledger.stage(digest).claims() for digest in unended}
    lately = now_ms() - 1000 * _SILENT_S
    working = {
        digest for digest, each in claims.items() if any(claim.now_ms > lately for claim in each)
    }
    worked_s = {
        digest: sum(map(took_s, each)) + BEAT_S * sum(c.beat for c in claims.get(digest, ()))
        for digest, each in tries.items()
    }
    states = [_state(cell, standings, working) for cell in plan.cells]
    lost = work_lost(tries)
    not_yet = sum(each[-1].ended in ("lost", "preempted") for each in tries.values() if each)
    running = states.count("running")
    return Progress(
        cells=len(states),
        done=states.count("done"),
        failed=states.count("failed"),
        stopped=states.count("stopped"),
        running=running,
        worked_s=sum(worked_s.values()),
        trained_s=sum(worked_s[d] for d, stage in plan.stages.items() if stage.kind == "train"),
        recoveries=lost.interruptions - not_yet,
        left_s=_left_s(plan, standings, tries, running),
    )


def _state(cell: Cell, standings: Mapping[str, Standing], working: set[str]) -> str:
    if cell.finished(standings):
        return "done"
    if any(isinstance(standings[stage.digest], Stopped) for stage in cell):
        return "stopped"
    if any(stage.digest in working for stage in cell):
        return "running"
    return "failed" if cell.ended(standings) else "waiting"


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
    unended = [cell for cell in plan.cells if not cell.idle(standings)]
    left_s = 0.0
    for stage in {stage.digest: stage for cell in unended for stage in cell}.values():
        match standings[stage.digest]:
            case Finished() | Failed() | Stopped():
                continue
            case Begun(step, total):
                share = 1 - step / max(1, total)
            case _:
                share = 1.0
        if stage.name not in took:
            return None
        left_s += share * mean(took[stage.name])
    return left_s / max(1, running)
