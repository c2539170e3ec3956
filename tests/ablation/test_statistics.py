"""Means, spreads and paired intervals against numbers worked out by hand and by SciPy."""

import random

import pytest
import scipy.stats

from ablation.statistics import Difference, Summary, paired, summarize, verdict


def test_summarize__by_hand() -> None:
    summary = summarize([1.0, 2.0, 6.0])
    assert summary == Summary(n=3, mean=3.0, sd=pytest.approx(7**0.5))
    assert summarize([5.0]) == Summary(n=1, mean=5.0, sd=None)
    assert summarize([]) is None


def test_paired__by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t(2, 97.5 %) = 4.302653, half width t / sqrt(3).
    found = paired({0: 2.0, 1: 4.0, 2: 6.0, 7: 9.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: 0.0})
    assert found is not None
    assert (found.n, found.mean) == (3, 2.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_paired__agrees_with_scipy() -> None:
    draw = random.Random(0)
    for n in (2, 3, 5, 20):
        ours = {seed: draw.gauss(83, 0.1) for seed in range(n)}
        base = {seed: draw.gauss(82, 0.1) for seed in range(n)}
        test = scipy.stats.ttest_rel(list(ours.values()), list(base.values()))
        interval = test.confidence_interval(0.95)
        found = paired(ours, base)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_paired__is_antisymmetric_and_blind_to_what_the_seed_does_to_both() -> None:
    ours, base = {0: 1.0, 1: 2.5, 2: 3.0}, {0: 0.5, 1: 1.0, 2: 2.25}
    found, back = paired(ours, base), paired(base, ours)
    assert found is not None
    assert back is not None
    assert found.low is not None
    assert (back.mean, back.high) == (-found.mean, pytest.approx(-found.low))
    shift = {0: 8.0, 1: -4.0, 2: 16.0}
    assert found == paired(
        {seed: value + shift[seed] for seed, value in ours.items()},
        {seed: value + shift[seed] for seed, value in base.items()},
    )


def test_paired__no_interval_without_spread() -> None:
    assert paired({0: 3.0}, {0: 1.0}) == Difference(n=1, mean=2.0)
    assert paired({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0}) == Difference(n=2, mean=2.0)
    rounding = paired({0: 84.2, 1: 84.3}, {0: 84.0, 1: 84.1})
    assert rounding is not None
    assert rounding.low is None
    assert paired({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}) == Difference(n=2, mean=0.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [
        (0.1, 0.3, "better", "worse"),
        (-0.3, -0.1, "worse", "better"),
        (-0.1, 0.3, "undecided", "undecided"),
        (0.0, 0.3, "undecided", "undecided"),
        (None, None, "undecided", "undecided"),
    ],
)
def test_verdict(low: float | None, high: float | None, higher: str, lower: str) -> None:
    difference = Difference(n=3, mean=0.0, low=low, high=high)
    assert verdict(difference, "higher") == higher
    assert verdict(difference, "lower") == lower
