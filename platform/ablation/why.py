"""The story of a cell: what was tried, how each try ended, and what was done twice for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ablation.attempts import Attempt
from ablation.cells import Begun, Cell, Failed, Finished, PlannedStage, Standing, Waiting

__all__ = ["Lost", "story", "work_lost"]


@dataclass(frozen=True, slots=True)
class Lost:
    """Work that was done again: interruptions, steps, and about how many seconds of them."""

    interruptions: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        times = (
            "1 interruption" if self.interruptions == 1 else f"{self.interruptions} interruptions"
        )
        return f"{times}, {self.steps} steps repeated ({_span(self.seconds)})"


def work_lost(attempts: Mapping[str, Sequence[Attempt]]) -> Lost:
    """What interruptions cost the stages whose attempts these are, by digest."""
    ends = [a for tries in attempts.values() for a in tries if a.ended in ("lost", "preempted")]
    again = [_repeated(a, b) for tries in attempts.values() for a, b in pairwise(tries)]
    return Lost(len(ends), sum(steps for steps, _ in again), sum(s for _, s in again))


def story(
    cell: Cell,
    standings: Mapping[str, Standing],
    attempts: Mapping[str, Sequence[Attempt]],
) -> Iterable[str]:
    """Lines for people; `attempts` are those of all the study's stages, by digest."""
    yield cell.title
    others = [
        a for digest, tries in attempts.items() if digest not in _digests(cell) for a in tries
    ]
    for stage in cell:
        tries = attempts.get(stage.digest, ())
        yield f"  {stage.name}: {_standing(standings[stage.digest], tries)}"
        before: Attempt | None = None
        for each in tries:
            yield f"    {each.number}. {_began(stage, each, before, others)}; {_ended(each)}"
            before = each
    lost = work_lost({digest: attempts.get(digest, ()) for digest in _digests(cell)})
    if lost.interruptions:
        yield f"  {lost}."


def _digests(cell: Cell) -> list[str]:
    return [stage.digest for stage in cell]


def _standing(standing: Standing, tries: Sequence[Attempt]) -> str:
    count = f"{len(tries)} attempt{'s' * (len(tries) != 1)}"
    match standing:
        case Finished():
            return f"finished, {count}"
        case Failed(error):
            return f"failed, {count}: {error}"
        case Begun(step, total):
            return f"step {step} of {total} is committed, {count}"
        case Waiting():
            return f"nothing is committed, {count}" if tries else "not begun"


def _began(
    stage: PlannedStage, attempt: Attempt, before: Attempt | None, others: Iterable[Attempt]
) -> str:
    words = []
    if attempt.queued_ms is not None and stage.parent is None and before is None:
        waited_s = (attempt.begun_ms - attempt.queued_ms) / 1000
        ahead = sum(attempt.queued_ms <= other.begun_ms < attempt.begun_ms for other in others)
        if waited_s >= 1:
            words.append(f"queued {_span(waited_s)} behind {ahead} stages of other cells")
    host = attempt.provenance.get("host")
    crew = f" with {attempt.workers} workers" if attempt.workers > 1 else ""
    at = f" on {host}" if host else ""
    start = f"after step {attempt.from_step}" if attempt.from_step else "from the beginning"
    words.append(f"{start}{at}{crew}")
    if before is not None and (again := _repeated(before, attempt))[0]:
        words.append(f"{again[0]} steps repeated ({_span(again[1])})")
    return ", ".join(words)


def _ended(attempt: Attempt) -> str:
    step = "" if attempt.step is None else f" at step {attempt.step}"
    match attempt.ended:
        case "finished":
            return f"finished{step}"
        case "failed":
            kind = {"memory": ", too little memory", "final": ", for good"}.get(
                attempt.cause or "", ""
            )
            return f"failed{step}{kind}: {attempt.error}"
        case "interrupted":
            return f"asked to stop{step}"
        case "preempted":
            return f"preempted{step} or later ({attempt.error})"
        case "lost":
            return f"lost{step}{' or later' * bool(step)}, without a word"
        case None:
            return "at work, or gone without a word"


def _repeated(first: Attempt, second: Attempt) -> tuple[int, float]:
    """Steps of the first attempt that the second did again, and about how long they take."""
    if first.step is None or first.step <= second.from_step:
        return 0, 0.0
    steps = first.step - second.from_step
    done = max(1, first.step - first.from_step)
    took_s = max(0, (first.ended_ms or first.begun_ms) - first.begun_ms) / 1000
    return steps, took_s * steps / done


def _span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
