"""The story of a cell: what was tried, how each try ended, and what was done twice for it."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import assert_never

from ablation.attempts import Attempt
from ablation.cells import GO_ON, Begun, Cell, Failed, Finished, Standing, Stopped, Waiting
from ablation.lease import BEAT_S

__all__ = ["Lost", "span", "story", "took_s", "work_lost"]

_CAUSES = {
    "memory": ", for lack of memory",
    "final": ", for good",
    "away": ", as what it needs was away",
    "node": ", with another worker's machine",
}
_INTERRUPTIONS = ("lost", "preempted")
_WORTH_A_WORD_S = 1.0


@dataclass(frozen=True, slots=True)
class Lost:
    """Work that was done again: interruptions, steps, and about how many seconds of them.

    A process that is gone last told of its step at its last beat, so they are the least.
    """

    interruptions: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        times = _count(self.interruptions, "interruption")
        if not self.steps:
            return f"{times}, less than {span(BEAT_S * self.interruptions)} of work repeated"
        return f"{times}, at least {_count(self.steps, 'step')} repeated ({span(self.seconds)})"


def work_lost(tries: Mapping[str, Sequence[Attempt]]) -> Lost:
    """What interruptions cost the stages whose attempts these are, by digest."""
    ends = [a for each in tries.values() for a in each if a.ended in _INTERRUPTIONS]
    again = [
        _repeated(first, second)
        for each in tries.values()
        for first, second in pairwise(each)
        if first.ended in _INTERRUPTIONS
    ]
    return Lost(len(ends), sum(steps for steps, _ in again), sum(s for _, s in again))


def story(
    cell: Cell,
    cells: Sequence[Cell],
    standings: Mapping[str, Standing],
    tries: Mapping[str, Sequence[Attempt]],
) -> Iterator[str]:
    """Lines for people on one of a study's cells; attempts are by their stage's digest."""
    yield cell.title
    runs: set[str] = set()
    for stage in cell:
        standing, attempts = standings[stage.digest], tries.get(stage.digest, ())
        failed = [s.name for s in cell if isinstance(standings[s.digest], Failed)]
        yield f"  {stage.name}: {_standing(standing, len(attempts), failed)}"
        for before, attempt in zip([None, *attempts], attempts, strict=False):
            place = [_place(attempt)]
            if attempt.run not in runs:
                place += _queued(attempt, cell, cells, tries)
            began, ended = _began(attempt, before), _ended(attempt, standing)
            yield f"    {attempt.number}. {', '.join(place)}: {began}; {ended}"
            runs.add(attempt.run)
        if isinstance(standing, Failed):
            yield f"    {standing.error}"
    if any(isinstance(standings[stage.digest], Stopped) for stage in cell):
        yield f"  It was stopped: {GO_ON}."
    lost = work_lost({stage.digest: tries.get(stage.digest, ()) for stage in cell})
    if lost.interruptions:
        yield f"  {lost}."


def _standing(standing: Standing, attempts: int, failed: Sequence[str]) -> str:
    """How a stage stands after so many attempts, where these stages of its cell failed."""
    if not attempts and isinstance(standing, Waiting | Stopped):
        return f"not begun: {failed[0]} failed" if failed else "not begun"
    count = _count(attempts, "attempt")
    match standing:
        case Finished():
            return f"finished, {count}"
        case Failed():
            return f"failed, {count}"
        case Begun(step, total):
            return f"step {step} of {total} is committed, {count}"
        case Waiting():
            return f"nothing is committed, {count}"
        case Stopped():
            return f"{standing}, {count}"
    assert_never(standing)


def _place(attempt: Attempt) -> str:
    if not attempt.begun_ms:
        return "its record is damaged"
    at = datetime.fromtimestamp(attempt.begun_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    crew = f", {attempt.workers} workers" if attempt.workers > 1 else ""
    return f"{at} on {attempt.provenance.get('host', 'an unknown machine')}{crew}"


def _queued(
    attempt: Attempt,
    cell: Cell,
    cells: Sequence[Cell],
    tries: Mapping[str, Sequence[Attempt]],
) -> list[str]:
    """How long a cell's first attempt of a run was waited for, and for what."""
    since = attempt.queued_ms or attempt.begun_ms
    waited_s = (attempt.begun_ms - since) / 1000
    if waited_s < _WORTH_A_WORD_S:
        return []
    mine = {stage.digest for stage in cell}
    ahead = sum(
        any(since <= a.begun_ms < attempt.begun_ms for a in _attempts(other, tries, mine))
        for other in cells
    )
    behind = f" behind {_count(ahead, 'cell')}" if ahead else ""
    return [f"queued {span(waited_s)}{behind}"]


def _attempts(
    cell: Cell, tries: Mapping[str, Sequence[Attempt]], without: Set[str]
) -> Iterator[Attempt]:
    for stage in cell:
        if stage.digest not in without:
            yield from tries.get(stage.digest, ())


def _began(attempt: Attempt, before: Attempt | None) -> str:
    step = attempt.from_step
    start = f"went on after step {step}" if step else "from the beginning"
    steps, seconds = _repeated(before, attempt) if before else (0, 0.0)
    return f"{start}, {_count(steps, 'step')} repeated ({span(seconds)})" if steps else start


def _ended(attempt: Attempt, standing: Standing) -> str:
    step = f" after step {attempt.step}" if attempt.step else ""
    took = f" in {span(took_s(attempt))}" if took_s(attempt) >= _WORTH_A_WORD_S else ""
    match attempt.ended:
        case "finished":
            return f"finished{step}{took}"
        case "failed":
            known = isinstance(standing, Failed) and standing.error.startswith(attempt.error)
            return f"failed{step}{took}{_CAUSES.get(attempt.cause or '', '')}" + (
                "" if known else f": {attempt.error}"
            )
        case "interrupted":
            return f"asked to stop{step}{took}"
        case "preempted":
            return f"preempted{step} or later ({attempt.error})"
        case "lost":
            how = _CAUSES.get(attempt.cause or "", ", without a word")
            return f"lost{step}{' or later' * bool(step)}{how}"
        case None if isinstance(standing, Finished | Failed):
            return "gone without a word"
        case None:
            return "at work, or lost since"
    assert_never(attempt.ended)


def _repeated(first: Attempt, second: Attempt) -> tuple[int, float]:
    """Steps of the first attempt that the second did again, and about how long they take."""
    if first.step is None or first.step <= second.from_step:
        return 0, 0.0
    steps = first.step - second.from_step
    return steps, took_s(first) * steps / max(1, first.step - first.from_step)


def took_s(attempt: Attempt) -> float:
    """Seconds of an attempt that has ended; 0 of one that has not."""
    return max(0, (attempt.ended_ms or attempt.begun_ms) - attempt.begun_ms) / 1000


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
