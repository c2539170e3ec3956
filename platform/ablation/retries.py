"""When a stage is tried again: the rules that the documentation's table states, and no others.

| an attempt ended | it is tried again |
|---|---|
| preempted, interrupted | always |
| lost | always, unless it is the fifth, or on machines lost too the twentieth, in a row in place |
| failed by an exception | as often as `max_failures` says; never after the same one at one step |
| failed as something it needs is away | after 2 s, then 4 s, up to a minute, for `patience_s` |
| failed for memory, or finally | never: another try would end the same way |

Only attempts of the present run count, so that whoever runs a failed study again gets a new try;
and of losses those under the present driver, for others' workers may have died with it. A loss is
in place where it did not get a step further. It may be a machine's doing where that, or a peer's,
was lost: where no other try came to it afterwards since it was started.
"""

from collections.abc import Sequence
from itertools import takewhile

from ablation.attempts import Attempt, Cause

__all__ = ["MAX_LOSSES", "MAX_LOSSES_IN_PLACE", "cause_of", "enough", "pause_s", "run_of", "said"]

MAX_LOSSES_IN_PLACE = 5
"""So many losses in a row without a step of progress are the stage's own doing: it crashes."""

MAX_LOSSES = 20
"""So many are too many wherever they were: the stage may take its machines down."""

_LONGEST_PAUSE_S = 60.0
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def cause_of(error: BaseException) -> Cause:
    """Why a trainer's exception ended its attempt.

    An exception is final where its class says `retry = False`, and of something that may come back
    where it says `away = True`; too little memory is known by the names that Python and torch give
    it, and where it has no name by what torch says of it.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or any(s in str(error) for s in _NO_MEMORY):
        return "memory"
    if getattr(error, "away", False):
        return "away"
    return "exception" if getattr(error, "retry", True) else "final"


def said(error: BaseException) -> str:
    """An exception in words, by which it is known again."""
    return f"{type(error).__name__}: {error}"


def run_of(name: str) -> str:
    """The run that a driver's name begins with."""
    return name.partition(".")[0]


def enough(
    attempts: Sequence[Attempt], *, max_failures: int, patience_s: float = 0.0
) -> str | None:
    """Why a stage is not tried again after these attempts, the last of them ended; else None."""
    last = attempts[-1]
    mine = [attempt for attempt in attempts if run_of(attempt.run) == run_of(last.run)]
    match last.ended:
        case "lost":
            return _crashing([attempt for attempt in mine if attempt.run == last.run])
        case "failed":
            return _failing(mine, max_failures, patience_s)
    return None


def pause_s(attempts: Sequence[Attempt]) -> float:
    """Seconds to wait before a stage is tried again after these attempts."""
    away = _away(attempts)
    return _pause_s(away) if away else 0.0


def _crashing(attempts: Sequence[Attempt]) -> str | None:
    at = attempts[-1].from_step
    row = [*takewhile(lambda a: a.ended == "lost" and a.from_step == at, reversed(attempts))][::-1]
    furthest, in_place, own = at, 0, 0
    for place, attempt in enumerate(row):
        if (attempt.step or 0) > furthest:
            furthest, in_place, own = attempt.step or 0, 0, 0
            continue
        outlived = attempt is row[-1] or _machine(attempt) in map(_machine, row[place + 1 :])
        in_place += 1
        own += outlived and attempt.cause != "node"
    if own < MAX_LOSSES_IN_PLACE and in_place < MAX_LOSSES:
        return None
    return f"its process was lost {in_place} times in a row at step {furthest}"


def _machine(attempt: Attempt) -> str:
    return str(attempt.provenance.get("machine", ""))


def _failing(attempts: Sequence[Attempt], max_failures: int, patience_s: float) -> str | None:
    last = attempts[-1]
    match last.cause:
        case "away":
            waited_s = sum(_pause_s(tries) for tries in range(1, _away(attempts)))
            return f"it was away for {patience_s:g} s" if waited_s >= patience_s else None
        case "memory":
            return "too little memory is never retried"
        case "final":
            return "another try would end the same way"
    failures = [a for a in attempts if a.ended == "failed" and a.cause != "away"]
    if any((f.error, f.step) == (last.error, last.step) for f in failures[:-1]):
        return f"the same exception came twice at step {last.step}"
    if len(failures) > max_failures:
        return f"max_failures is {max_failures}"
    return None


def _away(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts, all of one run, failed in place as something was away."""
    if not attempts:
        return 0
    last = attempts[-1]
    place = (run_of(last.run), last.step, "failed", "away")
    row = takewhile(
        lambda a: (run_of(a.run), a.step, a.ended, a.cause) == place, reversed(attempts)
    )
    return len([*row])


def _pause_s(tries: int) -> float:
    return min(2.0**tries, _LONGEST_PAUSE_S)
