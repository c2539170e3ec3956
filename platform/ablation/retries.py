"""When a stage is tried again: the rules that the documentation's table states, and no others.

| an attempt ended | it is tried again |
|---|---|
| preempted, interrupted | always |
| lost | always, unless it is the fifth in a row that did not get a step further |
| failed by an exception | as often as `max_failures` says; never after the same one at one step |
| failed for memory, or finally | never: another try would end the same way |

Only attempts of the present run count, so that whoever runs a failed study again gets a new try.
"""

from collections.abc import Sequence
from itertools import takewhile

from ablation.attempts import Attempt, Cause

__all__ = ["MAX_LOSSES_IN_PLACE", "cause_of", "enough"]

MAX_LOSSES_IN_PLACE = 5
"""So many losses in a row without a step of progress are the stage's own doing: it crashes."""


def cause_of(error: BaseException) -> Cause:
    """Why a trainer's exception ended its attempt.

    An exception is final where its class says `retry = False`; too little memory is known by the
    names that Python, torch and Ray give it.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return "memory"
    return "exception" if getattr(error, "retry", True) else "final"


def enough(attempts: Sequence[Attempt], *, max_failures: int) -> str | None:
    """Why a stage is not tried again after these attempts, the last of them ended; else None."""
    last = attempts[-1]
    mine = [attempt for attempt in attempts if attempt.run == last.run]
    match last.ended:
        case "lost":
            return _crashing(mine)
        case "failed":
            return _failing(mine, max_failures)
    return None


def _crashing(attempts: Sequence[Attempt]) -> str | None:
    at = attempts[-1].from_step
    row = takewhile(lambda a: a.ended == "lost" and a.from_step == at, reversed(attempts))
    furthest, in_place = at, 0
    for attempt in reversed([*row]):
        in_place = 0 if (attempt.step or 0) > furthest else in_place + 1
        furthest = max(furthest, attempt.step or 0)
    if in_place < MAX_LOSSES_IN_PLACE:
        return None
    return f"its process was lost {in_place} times in a row at step {furthest}"


def _failing(attempts: Sequence[Attempt], max_failures: int) -> str | None:
    last = attempts[-1]
    match last.cause:
        case "memory":
            return "too little memory is never retried"
        case "final":
            return "another try would end the same way"
    failures = [attempt for attempt in attempts if attempt.ended == "failed"]
    if any((f.error, f.step) == (last.error, last.step) for f in failures[:-1]):
        return f"the same exception came twice at step {last.step}"
    if len(failures) > max_failures:
        return f"max_failures is {max_failures}"
    return None
