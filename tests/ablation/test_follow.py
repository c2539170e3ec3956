import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from ablation.cells import Finished, Waiting
from ablation.events import Event
from ablation.follow import Follower, repeat
from ablation.journal import Record
from ablation.storage import StorageError
from ablation.table import tabulate

SOON = 10.0
TEXTS = {"table.md": "| slow |"}
DONE = {"aa": Finished({})}


@dataclass
class FakeTracker:
    """A tracker that does as `troubles` say, one for each call of the methods they are kept by."""

    uri: str = "http://tracker"
    troubles: dict[str, list[Callable[[], None]]] = field(default_factory=dict)
    always: dict[str, Callable[[], None]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    told: list[tuple[str, int]] = field(default_factory=list)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.times.append(time.monotonic())
        if waiting := self.troubles.get(name):
            waiting.pop(0)()
        if name in self.always:
            self.always[name]()

    def open(self) -> None:
        self._called("open")

    def log(self, digest: str, records: Any, /) -> None:
        records = list(records)
        self._called("log")
        self.told += [(digest, record.step) for record in records]

    def sync(self, standings: Any = None, /) -> None:
        self._called("sync" if standings is None else "sync all")

    def publish(self, texts: Any, *, figure: Any) -> None:
        self._called("publish")

    def close(self, *, complete: bool) -> None:
        self._called(f"close {complete}")


def _refuse() -> None:
    raise ConnectionError("nobody there\nsecond line")


def _event(step: int, digest: str = "aa") -> Event:
    records = (Record(step, step, {"loss": 1.0}),)
    return Event(digest=digest, name="train", kind="committed", step=step, records=records)


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def table(toy_plan):
    plan = toy_plan()
    return tabulate(plan, {digest: Finished({"accuracy": 1.0}) for digest in plan.stages})


def test_follower__tells_what_it_hears_and_all_of_it_at_the_end(table):
    tracker, said = FakeTracker(), []
    follower = Follower(tracker, said.append)
    for step in range(1, 4):
        follower(_event(step))
    follower(Event(digest="aa", name="train", kind="progress", step=4))
    _until(lambda: len(tracker.told) == 3)
    assert tracker.told == [("aa", 1), ("aa", 2), ("aa", 3)]
    assert follower.finish(DONE, table, TEXTS)
    assert tracker.calls[-3:] == ["sync all", "publish", "close True"]
    assert said == []


def test_follower__trouble_is_told_once_and_so_is_its_end(table):
    tracker, said = FakeTracker(troubles={"open": [_refuse] * 3}), []
    follower = Follower(tracker, said.append, pauses_s=(0.01, 0.02))
    _until(lambda: len(said) == 2)
    assert tracker.calls == ["open"] * 4 + ["sync"]
    trouble, end = said
    assert "http://tracker does not answer as it must (ConnectionError: nobody there)" in trouble
    assert "second line" not in trouble
    assert "has caught up" in end
    assert follower.finish(DONE, table, TEXTS)
    assert len(said) == 2


def test_follower__repeats_no_keys(table):
    uri = "https://user:TOKEN@mlflow"

    def refuse() -> None:
        raise ConnectionError(f"API request to {uri}/api/2.0/x failed")

    tracker, said = FakeTracker(uri, troubles={"open": [refuse, refuse]}), []
    Follower(tracker, said.append, pauses_s=(0.001, 0.001))
    _until(lambda: len(said) == 2)
    assert "https://mlflow/api/2.0/x failed" in said[0]
    tracker.always["open"] = refuse
    assert "(ConnectionError: API request to https://mlflow" in repeat(tracker, DONE, table, TEXTS)
    assert all("MLflow at https://mlflow " in text and "TOKEN" not in text for text in said)


def test_follower__each_spell_of_trouble_is_told(table):
    tracker, said = FakeTracker(troubles={"log": [_refuse] * 2}), []
    follower = Follower(tracker, said.append, pauses_s=(0.001, 0.001))
    for spell in (1, 2):
        follower(_event(spell))
        _until(lambda spell=spell: len(said) == 2 * spell)
    assert ["caught up" in text for text in said] == [False, True, False, True]
    assert tracker.calls == ["open"] + ["log", "open", "sync"] * 2


def test_follower__trouble_while_it_catches_up_is_the_same_trouble():
    tracker, said = FakeTracker(troubles={"log": [_refuse], "sync": [_refuse] * 2}), []
    follower = Follower(tracker, said.append, pauses_s=(0.001, 0.001))
    follower(_event(1))
    _until(lambda: len(said) == 2)
    assert tracker.calls == ["open", "log"] + ["open", "sync"] * 3


def test_follower__pauses_double_up_to_the_longest():
    tracker, said = FakeTracker(troubles={"open": [_refuse] * 5}), []
    Follower(tracker, said.append, pauses_s=(0.05, 0.2))
    _until(lambda: len(said) == 2)
    opened = [at for call, at in zip(tracker.calls, tracker.times, strict=True) if call == "open"]
    pauses = [after - before for before, after in pairwise(opened)]
    least = [0.05, 0.1, 0.2, 0.2, 0.2]
    assert all(got >= want for got, want in zip(pauses, least, strict=True))
    assert min(pauses) < 0.2  # it did not begin with the longest


def test_follower__pauses_begin_anew_after_a_long_good_time():
    tracker, said = FakeTracker(troubles={"open": [_refuse] * 4}), []
    follower = Follower(tracker, said.append, pauses_s=(0.02, 0.5))
    _until(lambda: len(said) == 2)
    time.sleep(0.51)
    tracker.troubles["log"] = [_refuse]
    follower(_event(1))
    _until(lambda: len(said) == 4)
    trouble, again = tracker.times[-3:-1]
    assert tracker.calls[-3:] == ["log", "open", "sync"]
    assert 0.02 <= again - trouble < 0.3  # 0.32 s would be the next


def test_follower__news_of_a_bad_time_are_left_to_the_ledger():
    tracker = FakeTracker(troubles={"open": [_refuse]})
    follower = Follower(tracker, ignore_text, pauses_s=(0.1, 0.1))
    _until(lambda: follower._due is not None)
    follower(_event(1))
    _until(lambda: "sync" in tracker.calls)
    follower(_event(2))
    _until(lambda: tracker.told)
    assert tracker.told == [("aa", 2)]


def test_follower__news_that_come_while_it_catches_up_are_told_afterwards():
    begun, go_on = threading.Event(), threading.Event()

    def catch_up() -> None:
        begun.set()
        assert go_on.wait(SOON)

    tracker = FakeTracker(troubles={"log": [_refuse], "sync": [catch_up]})
    follower = Follower(tracker, ignore_text, pauses_s=(0.001, 0.001))
    follower(_event(1))
    assert begun.wait(SOON)
    follower(_event(2))
    go_on.set()
    _until(lambda: tracker.told)
    assert tracker.told == [("aa", 2)]


def test_follower__a_hanging_tracker_slows_nothing_and_holds_no_memory(table):
    go_on = threading.Event()
    tracker, said = FakeTracker(troubles={"log": [lambda: go_on.wait(SOON)]}), []
    follower = Follower(tracker, said.append, pauses_s=(0.001, 0.001))
    follower(_event(0))
    _until(lambda: "log" in tracker.calls)
    begun = time.monotonic()
    for step in range(1, 50_000):
        follower(_event(step, f"{step % 7}"))
    assert time.monotonic() - begun < SOON / 2
    assert follower._news.count <= 10_001
    go_on.set()
    _until(lambda: len(said) == 2)
    assert "does not keep up" in said[0]
    assert tracker.calls == ["open", "log", "open", "sync"]
    assert tracker.told == [("aa", 0)]  # all else is in the ledger, and so in the sync
    assert follower.finish(DONE, table, TEXTS)


def test_follower__tells_all_news_of_a_stage_at_a_time():
    go_on = threading.Event()
    tracker = FakeTracker(troubles={"open": [lambda: go_on.wait(SOON)]})
    follower = Follower(tracker, ignore_text)
    for step in range(6):
        follower(_event(step, "ab"[step % 2] * 2))
    go_on.set()
    _until(lambda: len(tracker.told) == 6)
    assert tracker.calls == ["open", "log", "log"]
    assert tracker.told == [(digest, step) for digest, first in (("aa", 0), ("bb", 1))
                            for step in range(first, 6, 2)]  # fmt: skip


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError(), StorageError("disk\nfull")])
def test_follower__survives_whatever_a_tracker_raises(error, table):
    def fail() -> None:
        raise error

    tracker, said = FakeTracker(always={"log": fail, "publish": fail}), []
    follower = Follower(tracker, said.append, pauses_s=(0.001, 0.001))
    follower(_event(1))
    _until(lambda: len(said) == 2)
    assert type(error).__name__ in said[0]
    assert ("cannot be told" in said[0]) == isinstance(error, StorageError)
    assert not follower.finish(DONE, table, TEXTS)
    assert len(said) == 3


def test_follower__finish_opens_again_after_trouble(table):
    tracker, said = FakeTracker(troubles={"open": [_refuse]}), []
    follower = Follower(tracker, said.append, pauses_s=(SOON, SOON))
    _until(lambda: said)
    assert follower.finish({"aa": Finished({})}, table, TEXTS)
    assert tracker.calls == ["open", "open", "sync all", "publish", "close True"]
    assert "has caught up" in said[1]


def test_follower__finish_tries_a_dead_tracker_once_and_tells_nothing_new(table):
    tracker, said = FakeTracker(always={"open": _refuse}), []
    follower = Follower(tracker, said.append, pauses_s=(SOON, SOON))
    _until(lambda: said)
    assert not follower.finish(DONE, table, TEXTS)
    assert tracker.calls == ["open", "open"]
    assert len(said) == 1


@pytest.mark.parametrize("where", ["open", "log", "sync all", "publish"])
def test_follower__finish_leaves_a_hanging_tracker_to_itself(where, table):
    go_on = threading.Event()
    tracker, said = FakeTracker(always={where: lambda: go_on.wait(SOON)}), []
    follower = Follower(tracker, said.append, patience_s=-0.8)
    follower(_event(1))
    if where == "log":
        _until(lambda: "log" in tracker.calls)
    begun = time.monotonic()
    assert not follower.finish(DONE, table, TEXTS)
    assert time.monotonic() - begun < SOON / 2
    assert len(said) == 1
    assert "is not up to date" in said[0]
    go_on.set()


def test_follower__finish_has_a_second_more_for_every_stage(table):
    tracker = FakeTracker(always={"sync all": lambda: time.sleep(0.3)})
    follower = Follower(tracker, ignore_text, patience_s=0.0)
    assert follower.finish(DONE, table, TEXTS)


def test_follower__finish_may_wait_for_ever(table):
    assert Follower(FakeTracker(), ignore_text, patience_s=float("inf")).finish(DONE, table, TEXTS)


def ignore_text(text: str) -> None:
    pass


def test_repeat__tells_all_of_it_however_long_it_takes(table):
    tracker = FakeTracker(always={"sync all": lambda: time.sleep(0.2)})
    assert repeat(tracker, DONE, table, TEXTS) == ""
    assert tracker.calls == ["open", "sync all", "publish", "close True"]
    tracker = FakeTracker()
    repeat(tracker, {"aa": Waiting()}, table, TEXTS)
    assert tracker.calls[-1] == "close False"


@pytest.mark.parametrize("where", ["open", "sync all", "publish", "close True"])
def test_repeat__says_what_went_wrong_and_tries_nothing_else(where, table):
    tracker = FakeTracker(always={where: _refuse})
    words = repeat(tracker, DONE, table, TEXTS)
    assert words == "does not answer as it must (ConnectionError: nobody there)"
    assert tracker.calls[-1] == where
    assert tracker.calls.count("open") == 1
