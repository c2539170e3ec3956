"""What a lease keeps from a stage's folder, and what its holder writes there about the dead."""

import time
from pathlib import Path
from typing import Any

import pytest

from ablation.cells import Begun, Finished
from ablation.claims import Claim, put
from ablation.group import LostNodeError
from ablation.journal import Record
from ablation.lease import Lease, LostLeaseError, acquire
from ablation.process import Process


def now_ms() -> int:
    return time.time_ns() // 10**6


def claim(name: str, **parts: Any) -> Claim:
    return Claim(name=name, process=Process(host="another", pid=1, born="1"), run="other", **parts)


def test_claims__are_of_whoever_has_not_given_up(ledger):
    stage = ledger.stage("ab" * 8)
    assert stage.claims() == []
    put(stage.storage, stage.at("lease"), claim("000001-aa", over=True))
    assert stage.claims() == []
    put(stage.storage, stage.at("lease"), claim("000002-aa", beat=7))
    assert stage.claims() == [claim("000002-aa", beat=7)]


def test_bury__records_what_the_dead_last_claimed(ledger):
    stage = ledger.stage("ab" * 8)
    for from_step in (0, 4, 4, 4):
        begun = stage.begin_attempt(time_ms=100, from_step=from_step, run="run", provenance={})
    stage.end_attempt(begun, "interrupted", time_ms=110, step=6)
    warned = claim("000002-aa", attempt=2, step=9, notice="spot", now_ms=170)
    silent = claim("000003-aa", attempt=3, step=0, now_ms=180)
    idle = claim("000004-aa", attempt=4, step=9, notice="spot", now_ms=190)
    stage.bury([warned, silent, idle])
    first, second, third, fourth = stage.attempts()
    assert (first.ended, first.ended_ms, first.step, first.error) == ("lost", None, None, "")
    assert (second.ended, second.ended_ms, second.step) == ("preempted", 170, 9)
    assert (second.error, second.run, second.begun_ms) == ("spot", "run", 100)
    assert (third.ended, third.ended_ms, third.step) == ("lost", 180, 4)
    assert (fourth.ended, fourth.ended_ms, fourth.step) == ("interrupted", 110, 6)


def test_bury__takes_what_was_raised_for_the_end_of_the_last(ledger):
    stage = ledger.stage("ab" * 8)
    for _ in range(3):
        begun = stage.begin_attempt(time_ms=100, from_step=0, provenance={})
    stage.end_attempt(begun, "interrupted", time_ms=110, step=6)
    stage.bury([claim("000001-aa", attempt=2, step=9, notice="spot")], raised=MemoryError("all"))
    ends = [(attempt.ended, attempt.cause, attempt.error) for attempt in stage.attempts()]
    assert ends == [
        ("lost", None, ""),
        ("failed", "memory", "MemoryError: all"),
        ("interrupted", None, ""),
    ]
    assert stage.attempts()[1].step == 9


def test_bury__of_a_group_that_lost_a_node(ledger):
    """That is nobody's doing; and a notice, if there was one, had said it."""
    stage = ledger.stage("ab" * 8)
    for notice, end in (("", ("lost", "node")), ("spot", ("preempted", None))):
        number = stage.begin_attempt(time_ms=100, from_step=0, run="a", provenance={}).number
        dead = claim(f"{number:06}-aa", attempt=number, step=9, notice=notice)
        stage.bury([dead], raised=LostNodeError(), run="a")
        assert (stage.attempts()[-1].ended, stage.attempts()[-1].cause) == end


def test_bury__of_another_driver_s_attempt_takes_nothing_from_this_one(ledger):
    stage = ledger.stage("ab" * 8)
    stage.begin_attempt(time_ms=100, from_step=0, run="a", provenance={})
    stage.bury([], raised=MemoryError("all"), run="b")
    assert [(each.ended, each.cause) for each in stage.attempts()] == [("lost", None)]


def test_bury__of_nobody_changes_nothing(ledger):
    stage = ledger.stage("ab" * 8)
    stage.bury([claim("000001-aa", attempt=1)])
    assert stage.attempts() == ()


def test_bury__takes_the_last_word_on_an_attempt(ledger):
    """Two processes may have begun an attempt of the same number: one of them was taken over."""
    stage = ledger.stage("ab" * 8)
    stage.begin_attempt(time_ms=100, from_step=0, provenance={})
    stage.bury([claim("000001-aa", attempt=1, step=3), claim("000002-aa", attempt=1, step=2)])
    assert [attempt.step for attempt in stage.attempts()] == [2]


def refuse() -> None:
    raise LostLeaseError("taken over")


def saved(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "state").write_text(text)
    return folder


def test_guard__keeps_a_checkpoint_from_the_ledger(ledger, tmp_path):
    digest, writer = "ab" * 8, ledger.writer("ab" * 8)
    folder = saved(tmp_path / "saved", "one")
    for step in (1, 2):
        writer.commit(step, 9, folder=folder, records=[Record(step, 5, {"loss": 1.0})])
    before = [(c.step, c.name) for c in ledger.stage(digest).commits()]
    journal = ledger.journal(digest)
    records = [Record(3, 5, {"loss": 1.0})]
    with pytest.raises(LostLeaseError):
        writer.commit(3, 9, folder=folder, records=records, guard=refuse)
    assert writer.step == 2
    assert [(c.step, c.name) for c in ledger.stage(digest).commits()] == before
    assert ledger.journal(digest) == journal
    restored = ledger.stage(digest).restore(tmp_path / "into")
    assert restored is not None
    assert restored.step == 2
    writer.commit(3, 9, folder=folder, records=records, guard=lambda: None)
    assert [record.step for record in ledger.journal(digest)] == [1, 2, 3]


def test_guard__is_asked_when_all_else_is_written(ledger, tmp_path):
    """So that as little time as can be lies between its answer and the commit."""
    digest, stage = "ab" * 8, ledger.stage("ab" * 8)
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([*stage.storage.names(stage.at("journal")), str(stage.outcome())])

    writer, folder = ledger.writer(digest), saved(tmp_path / "saved", "one")
    writer.commit(1, 2, folder=folder, records=[Record(1, 5, {})], guard=look)
    writer.finish({"x": 1.0}, export=folder, records=[Record(2, 5, {})], guard=look)
    assert [len(names) for names in seen] == [1 + 1, 2 + 1]
    assert {names[-1] for names in seen} == {"None"}
    assert isinstance(ledger.outcome(digest), Finished)


def test_guard__keeps_an_outcome_from_the_ledger(ledger, tmp_path):
    digest, writer = "ab" * 8, ledger.writer("ab" * 8)
    folder = saved(tmp_path / "saved", "one")
    writer.commit(1, 2, folder=folder, records=[Record(1, 5, {})])
    with pytest.raises(LostLeaseError):
        writer.finish({"x": 1.0}, export=folder, records=[Record(2, 5, {})], guard=refuse)
    assert ledger.outcome(digest) is None
    assert ledger.standing(digest) == Begun(1, 2)
    taker = ledger.writer(digest, after=ledger.stage(digest).restore(tmp_path / "into"))
    taker.finish({"x": 1.0}, export=folder, records=[Record(2, 7, {})])
    assert [record.time_ms for record in ledger.journal(digest)] == [5, 7]


def test_guard__a_holder_that_was_taken_over_commits_nothing(ledger, tmp_path):
    """The whole of it: lease, guard and writer, while another goes on from the same state."""
    digest, stage = "ab" * 8, ledger.stage("ab" * 8)
    path, folder = stage.at("lease"), saved(tmp_path / "saved", "one")
    first = acquire(stage.storage, path, run="run", now_ms=now_ms, beat_s=3600)
    assert isinstance(first, Lease)
    late = ledger.writer(digest)
    late.commit(1, 3, folder=folder, records=[Record(1, 5, {})], guard=first.check)
    second = acquire(stage.storage, path, run="run", now_ms=now_ms, beat_s=3600)
    assert isinstance(second, Lease)
    writer = ledger.writer(digest, after=stage.restore(tmp_path / "into"))
    for step in (2, 3):
        with pytest.raises(LostLeaseError):
            late.commit(step, 3, folder=folder, records=[Record(step, 6, {})], guard=first.check)
        writer.commit(step, 3, folder=folder, records=[Record(step, 7, {})], guard=second.check)
    with pytest.raises(LostLeaseError):
        late.finish({"x": 2.0}, export=folder, records=(), guard=first.check)
    with pytest.raises(LostLeaseError):
        late.fail("too late", guard=first.check)
    assert stage.outcome() is None
    first.release()
    second.release()
    assert [(record.step, record.time_ms) for record in ledger.journal(digest)] == [
        (1, 5), (2, 7), (3, 7),
    ]  # fmt: skip
