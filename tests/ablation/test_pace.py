from math import sqrt

import pytest

from ablation.attempts import Attempt
from ablation.pace import EXPECTED_S, Pace
from ablation.terms import Terms


def attempt(ended: str | None, seconds: float | None, begun_ms: int = 10**12) -> Attempt:
    ended_ms = None if seconds is None else begun_ms + int(1000 * seconds)
    return Attempt(number=1, begun_ms=begun_ms, from_step=0, ended=ended, ended_ms=ended_ms)  # type: ignore[arg-type]


def lost_time(every_s: float, cost_s: float, between_s: float) -> float:
    """Share of the time that goes into saving, and into doing again what was not saved."""
    return cost_s / every_s + every_s / 2 / between_s


@pytest.mark.parametrize("cost_s", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("between_s", [3600.0, 4 * 3600.0])
def test_pace__loses_the_least_time(cost_s, between_s):
    pace = Pace(least_s=0.0, most_s=1e9, seen_s=between_s)
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
    peace = [Pace(most_s=1e9, seen_s=time).interval_s(0.1) for time in (600, 6000, 60000)]
    assert peace == sorted(set(peace))


@pytest.mark.parametrize("cost_s", [0.0, 1e-6, 0.3, 20.0, 1e4])
def test_pace__keeps_its_bounds(cost_s):
    assert 7.0 <= Pace(least_s=7.0, most_s=40.0).interval_s(cost_s) <= 40.0
    assert Pace(least_s=0.0, most_s=0.0).interval_s(cost_s) == 0.0
    assert Pace(least_s=9.0, most_s=9.0).interval_s(cost_s) == 9.0


@pytest.mark.parametrize("cost_s", [0.2, 5.0, 30.0])
def test_pace__saving_takes_a_hundredth_at_most(cost_s):
    """Even where interruptions come so often that the formula would save all the time."""
    interval = Pace(most_s=1e9, seen_s=60.0).interval_s(cost_s)
    assert cost_s / interval <= 0.01 * (1 + 1e-9)


def test_between__is_what_is_expected_where_nothing_was_seen():
    assert Pace().after([]).between_s == EXPECTED_S
    assert Pace().after([attempt(None, None)]).between_s == EXPECTED_S


def test_between__attempts_that_nothing_interrupted_speak_for_peace():
    seen = [attempt("finished", 3600), attempt("failed", 60), attempt("interrupted", 60)]
    assert Pace().after(seen).between_s == EXPECTED_S + 3720


def test_between__comes_near_what_is_seen():
    hours = [attempt("lost" if n % 2 else "preempted", 1200) for n in range(1000)]
    assert Pace().after(hours).between_s == pytest.approx(1200, rel=0.02)
    falling = [Pace().after(hours[:n]).between_s for n in range(5)]
    assert falling == sorted(falling, reverse=True)


def test_between__does_without_times():
    """Of one that was lost without a word, of a clock that went back, of a damaged record."""
    assert Pace().after([attempt("lost", None)]).between_s == EXPECTED_S / 2
    assert Pace().after([attempt("finished", -50)]).between_s == EXPECTED_S
    damaged = Attempt(number=1, begun_ms=0, from_step=0, ended="lost", ended_ms=10**12)
    assert Pace().after([damaged]).between_s == EXPECTED_S / 2


def test_after__adds_up():
    seen = [attempt("lost", 600), attempt("finished", 60), attempt("preempted", 6)]
    step_by_step = Pace().after(seen[:1]).after(seen[1:])
    assert step_by_step == Pace().after(seen)
    assert step_by_step.between_s == (EXPECTED_S + 666) / 3


def test_terms__of_a_stage_hear_of_what_its_driver_cannot_know():
    """The driver saw the ledger when it began; what was tried since is news."""
    old, new = attempt("lost", 60, begun_ms=1000), attempt("lost", 60, begun_ms=2000)
    terms = Terms(queued_ms=2000, pace=Pace().after([old]))
    assert terms.since([old, new]).pace == Pace().after([old, new])
    assert Terms().since([old, new]).pace == Pace()
