from math import sqrt

import pytest

from ablation.attempts import Attempt
from ablation.pace import EXPECTED_S, Pace, time_between_interruptions


def attempt(ended: str | None, seconds: float | None, begun_ms: int = 10**12) -> Attempt:
    ended_ms = None if seconds is None else begun_ms + int(1000 * seconds)
    return Attempt(number=1, begun_ms=begun_ms, from_step=0, ended=ended, ended_ms=ended_ms)  # type: ignore[arg-type]


def lost_time(every_s: float, cost_s: float, between_s: float) -> float:
    """Share of the time that goes into saving, and into doing again what was not saved."""
    return cost_s / every_s + every_s / 2 / between_s


@pytest.mark.parametrize("cost_s", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("between_s", [3600.0, 4 * 3600.0])
def test_pace__loses_the_least_time(cost_s, between_s):
    pace = Pace(least_s=0.0, most_s=1e9, between_s=between_s)
    best = pace.interval_s(cost_s)
    if best > cost_s / 0.01:
        assert best == pytest.approx(sqrt(2 * cost_s * between_s))
        for other in (0.5 * best, 0.9 * best, 1.1 * best, 2 * best):
            assert lost_time(best, cost_s, between_s) < lost_time(other, cost_s, between_s)


def test_pace__rises_with_cost_and_with_peace():
    pace = Pace(least_s=0.0, most_s=1e9)
    costs = [0.0, 0.01, 0.1, 1.0, 10.0, 1000.0]
    intervals = [pace.interval_s(cost) for cost in costs]
    assert intervals == sorted(set(intervals))
    peace = [Pace(most_s=1e9, between_s=time).interval_s(0.1) for time in (600, 6000, 60000)]
    assert peace == sorted(set(peace))


@pytest.mark.parametrize("cost_s", [0.0, 1e-6, 0.3, 20.0, 1e4])
def test_pace__keeps_its_bounds(cost_s):
    assert 7.0 <= Pace(least_s=7.0, most_s=40.0).interval_s(cost_s) <= 40.0
    assert Pace(least_s=0.0, most_s=0.0).interval_s(cost_s) == 0.0
    assert Pace(least_s=9.0, most_s=9.0).interval_s(cost_s) == 9.0


@pytest.mark.parametrize("cost_s", [0.2, 5.0, 30.0])
def test_pace__saving_takes_a_hundredth_at_most(cost_s):
    """Even where interruptions come so often that the formula would save all the time."""
    interval = Pace(most_s=1e9, between_s=60.0).interval_s(cost_s)
    assert cost_s / interval <= 0.01 * (1 + 1e-9)


def test_between__is_what_is_expected_where_nothing_was_seen():
    assert time_between_interruptions([]) == EXPECTED_S
    assert time_between_interruptions([attempt(None, None)]) == EXPECTED_S


def test_between__attempts_that_nothing_interrupted_speak_for_peace():
    seen = [attempt("finished", 3600), attempt("failed", 60), attempt("interrupted", 60)]
    assert time_between_interruptions(seen) == EXPECTED_S + 3720


def test_between__comes_near_what_is_seen():
    hours = [attempt("lost" if n % 2 else "preempted", 1200) for n in range(1000)]
    assert time_between_interruptions(hours) == pytest.approx(1200, rel=0.02)
    falling = [time_between_interruptions(hours[:n]) for n in range(5)]
    assert falling == sorted(falling, reverse=True)


def test_between__does_without_times():
    """Of one that was lost without a word, of a clock that went back, of a damaged record."""
    assert time_between_interruptions([attempt("lost", None)]) == EXPECTED_S / 2
    assert time_between_interruptions([attempt("finished", -50)]) == EXPECTED_S
    damaged = Attempt(number=1, begun_ms=0, from_step=0, ended="lost", ended_ms=10**12)
    assert time_between_interruptions([damaged]) == EXPECTED_S / 2
