"""How often a stage is saved: as often as it pays, by what saving costs and how often runs end.

The interval that loses the least time is about the square root of twice the cost of a checkpoint
times the mean time between interruptions (Young 1974; Daly 2006 refines it for intervals near that
mean, which a checkpoint of seconds never is).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import sqrt

from ablation.attempts import Attempt

__all__ = ["EXPECTED_S", "Pace"]

EXPECTED_S = 4 * 3600.0
"""Mean time between interruptions that a spot machine is taken to have before any was seen."""

_SHARE = 0.01
"""Of the time, no more than this goes into saving, unless the longest interval is shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds from one checkpoint to the next: at least `least_s`, at most `most_s` (0: each step).

    Attempts of `seen_s` seconds in all had `ends` interruptions, the one that is expected among
    them.
    """

    least_s: float = 5.0
    most_s: float = 600.0
    seen_s: float = EXPECTED_S
    ends: int = 1

    @property
    def between_s(self) -> float:
        """Mean time between interruptions."""
        return self.seen_s / self.ends

    def interval_s(self, cost_s: float) -> float:
        """Time to the next checkpoint where the last one kept training waiting for `cost_s`."""
        best = max(sqrt(2 * cost_s * self.between_s), cost_s / _SHARE)
        return min(self.most_s, max(self.least_s, best))

    def after(self, attempts: Iterable[Attempt]) -> "Pace":
        """The pace of who has seen these attempts too."""
        seen_s, ends = self.seen_s, self.ends
        for attempt in attempts:
            if attempt.ended_ms and attempt.begun_ms:  # 0 where the record is damaged
                seen_s += max(0, attempt.ended_ms - attempt.begun_ms) / 1000
            ends += attempt.ended in ("lost", "preempted")
        return replace(self, seen_s=seen_s, ends=ends)
