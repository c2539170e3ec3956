"""Whose turn it is among drivers, as an actor tells them; test_cluster has a real one."""

import pytest

from ablation.executors import turns
from ablation.executors.turns import Meeting, Turns
from ablation.shares import Claimant


class Driver:
    """One with cells that each fill a part of a cluster of `room` for some rounds."""

    def __init__(self, name: str, *, size: int, cells: int, room: int = 8) -> None:
        self.name, self.size, self.slots = name, size, room // size
        self.left = cells

    def ask(self, meeting: Meeting, at_work: int) -> int:
        wants = self.left + at_work
        return meeting.ask(Claimant(name=self.name, wants=wants, slots=self.slots, at_work=at_work))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    return now


def work(clock: list[float], *drivers: Driver, room: int = 8, lasts: int = 3) -> list[str]:
    """Whose cells began, in their order; what is handed out begins when there is room for it."""
    meeting, waiting, busy = Meeting(), list[Driver](), list[tuple[Driver, int]]()
    began: list[str] = []
    for _ in range(400):
        clock[0] += 1.0
        busy = [(driver, rounds - 1) for driver, rounds in busy if rounds > 1]
        for driver in drivers:
            mine = waiting.count(driver) + sum(each is driver for each, _ in busy)
            share = driver.ask(meeting, mine)
            for _ in range(min(share - mine, driver.left)):
                driver.left -= 1
                waiting.append(driver)
        for driver in [*waiting]:  # the first that fits, as Ray does
            if sum(each.size for each, _ in busy) + driver.size <= room:
                waiting.remove(driver)
                busy.append((driver, lasts))
                began.append(driver.name)
    assert not any(driver.left for driver in drivers)
    return began


def test_meeting__where_one_cell_fits_drivers_take_turns(clock):
    began = work(clock, *(Driver(name, size=8, cells=4) for name in "abc"))
    assert "".join(began) == "abc" * 4


def test_meeting__a_cell_that_needs_all_gets_it_between_small_ones(clock):
    began = work(clock, Driver("s", size=1, cells=40), Driver("W", size=8, cells=3))
    text = "".join(began)
    assert text.count("W") == 3
    assert text.rindex("W") < len(text) - 8, "it waits for no whole study"


def test_meeting__parts_are_equal_where_they_fit(clock):
    began = "".join(work(clock, *(Driver(name, size=2, cells=20) for name in "ab")))
    ahead = [began[:n].count("a") - began[:n].count("b") for n in range(len(began))]
    assert max(map(abs, ahead)) <= 4 + 2, "the first four cells had the cluster for themselves"


class Here:
    """The meeting without an actor."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self.ask = self

    def remote(self, claimant: Claimant) -> int:
        return self.meeting.ask(claimant)


def driver(name: str, slots: int, *, over=lambda at: False) -> Turns:
    return Turns(9, name=name, priority=0, most=None, slots=lambda: slots, over=over)


def test_turns__a_cell_that_no_node_can_hold_leaves_the_cluster_to_others(monkeypatch):
    meeting = Here(Meeting())
    monkeypatch.setattr(turns, "_meeting", lambda: meeting)
    monkeypatch.setattr(turns.ray, "get", lambda answer, timeout: answer)
    huge, small = driver("huge", 0), driver("small", 4)
    for _ in range(3):
        assert (huge._ask(), small._ask()) == (1, 4)


def test_turns__are_over_where_all_that_is_left_is_stopped():
    """It needs no turn to end: a more urgent driver may have the cluster for days."""
    asked: list[int] = []

    def over(at: int) -> bool:
        asked.append(at)
        return at > 0

    mine = driver("mine", 4, over=over)
    assert mine.suggest("a") is None
    mine._share = 1
    assert mine.suggest("a") == {"group": 0}
    assert mine.suggest("b") == "FINISHED"
    assert asked == [0, 0, 1]
