"""What a few seeds can say: mean, spread, and the paired difference with its interval.

Two rows with one seed share initial weights, data order and noise, so their difference is taken
seed by seed: what the seed does to both cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Literal, TypeAlias

from scipy.special import stdtrit

from ablation.protocol import Direction

__all__ = [
    "CONFIDENCE",
    "MOST_SEEDS",
    "Difference",
    "Summary",
    "Verdict",
    "further_seeds",
    "paired",
    "summarize",
    "verdict",
]

CONFIDENCE = 0.95
MOST_SEEDS = 1000
"""Further seeds that are counted."""

Verdict: TypeAlias = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`n` values: their mean, and their sample standard deviation (None for a single one)."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean difference over the `n` seeds that two rows share.

    `low` to `high` is its 95 % interval by Student's t. There is none (None) for a single seed, nor
    where all differences are equal: no spread means that the seed decides nothing, not certainty.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and sample standard deviation; None of nothing."""
    if not values:
        return None
    n = len(values)
    mean = fsum(values) / n
    sd = sqrt(fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Summary(n=n, mean=mean, sd=sd)


def paired(ours: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Difference of two rows, each by seed, over the seeds that both have; None without any."""
    seeds = ours.keys() & base.keys()
    summary = summarize([ours[seed] - base[seed] for seed in sorted(seeds)])
    if summary is None:
        return None
    size = max(abs(value) for seed in seeds for value in (ours[seed], base[seed]))
    # Below this, what looks like spread is the rounding of the subtraction.
    if summary.sd is None or summary.sd <= 1e-12 * size:
        return Difference(n=summary.n, mean=summary.mean)
    half = summary.sd * _reach(summary.n)
    return Difference(
        n=summary.n, mean=summary.mean, low=summary.mean - half, high=summary.mean + half
    )


def verdict(difference: Difference, direction: Direction) -> Verdict:
    """What the interval supports: nothing where it holds zero, or where there is none."""
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) == (direction == "higher") else "worse"


def further_seeds(difference: Difference) -> int | None:
    """The fewest further seeds with which the interval would not hold zero.

    The mean and the standard deviation of the differences are taken to stay as they are. More than
    MOST_SEEDS are told as one more than these; None where there is no spread to go by.
    """
    n, low, high = difference.n, difference.low, difference.high
    if low is None or high is None:
        return None
    sd = (high - low) / 2 / _reach(n)
    more = range(1, MOST_SEEDS + 1)
    return next((m for m in more if sd * _reach(n + m) < abs(difference.mean)), MOST_SEEDS + 1)


def _reach(n: int) -> float:
    """Half the width of the interval of `n` values, in standard deviations (Student's t)."""
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) / sqrt(n)
