import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ablation.cells import Begun, Failed, Finished, Waiting
from ablation.claims import claims_at, names_at
from ablation.events import Event
from ablation.execute import execute, never
from ablation.group import Group
from ablation.interrupts import stoppable
from ablation.lease import Lease
from ablation.ledger import Ledger
from ablation.pace import Pace
from ablation.patience import Patience
from ablation.protocol import Place
from ablation.storage import StorageError
from ablation.terms import Terms
from ablation.testing import (
    Toy,
    ToyNoise,
    ToyTrainer,
    ignore,
    new_ledger,
    paced,
    planned,
    stop_after,
)
from ablation.toy import ToyProgress, ToyResult, ToyStage

STAGE = planned("train", Toy(), seed=0)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return new_ledger(tmp_path / "ledger")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made: nothing may stay there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def run(ledger, stage=STAGE, *, trainer=None, observe=ignore, should_stop=never, **options):
    return execute(
        stage,
        trainer=trainer or ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=observe,
        should_stop=should_stop,
        origin={"host": "here"},
        **{"terms": paced(0), **options},
    )


@dataclass(frozen=True)
class Only:
    """A trainer of the toy's name whose `train` is one generator function."""

    steps: Callable
    name: str = "toy"
    result_version: int = 1

    def stages(self):
        return {"train": ToyStage(kind="train", config_type=Toy, steps=self.steps)}


def nothing(folder: Path) -> None: ...


def explode(folder: Path) -> None:
    (folder / "half").write_text("x")
    raise OSError("the disk of the trainer is full")


def test_execute__tells_what_happens(ledger, scratch):
    events = []
    outcome = run(ledger, planned("train", Toy(steps=2), seed=0), observe=events.append)
    assert [(event.kind, event.step) for event in events] == [
        ("begun", 0), ("progress", 1), ("committed", 1), ("progress", 2), ("committed", 2),
        ("finished", 2),
    ]  # fmt: skip
    assert outcome == Finished(events[-1].metrics)
    assert all(event.total == 2 for event in events[1:])
    assert list(scratch.iterdir()) == []
    assert pickle.loads(pickle.dumps(events)) == events


def test_execute__each_record_is_told_once(ledger):
    events = []
    run(ledger, should_stop=stop_after(3), observe=events.append)
    run(ledger, observe=events.append, terms=paced(1e9))
    told = [record for event in events for record in event.records]
    assert tuple(told) == ledger.journal(STAGE.digest)
    assert events[-1].kind == "finished"
    assert len(events[-1].records) == 5


def test_execute__keeps_only_steps_with_metrics(ledger):
    stage = planned("train", Toy(log_every=3), seed=0)
    run(ledger, stage)
    assert [record.step for record in ledger.journal(stage.digest)] == [3, 6]


def test_execute__ended_is_not_run_again(ledger):
    run(ledger)
    bad = planned("train", Toy(fail_at=1), seed=0)
    failed = run(ledger, bad)
    events = []
    assert run(ledger, observe=events.append) == ledger.outcome(STAGE.digest)
    assert run(ledger, bad, observe=events.append) == failed
    assert [event.kind for event in events] == ["found", "found"]
    assert events[0].message == "finished before"
    assert events[1].message.startswith("failed before: RuntimeError: the toy was asked to fail")
    assert len(ledger.stage(STAGE.digest).attempts()) == 1


def test_execute__stop_before_the_start_does_nothing(ledger):
    assert run(ledger, should_stop=lambda: True) == "stopped"
    assert ledger.standing(STAGE.digest) == Waiting()
    assert ledger.stage(STAGE.digest).attempts() == ()


def test_execute__stop_commits_the_step_it_was_seen_at(ledger):
    events = []
    stop = stop_after(5)
    assert run(ledger, should_stop=stop, terms=paced(1e9), observe=events.append) == "stopped"
    assert ledger.standing(STAGE.digest) == Begun(5, 8)
    assert [event.kind for event in events][-2:] == ["committed", "interrupted"]
    run(ledger, observe=events.append)
    (first, second) = ledger.stage(STAGE.digest).attempts()
    assert (first.ended, first.from_step, first.step) == ("interrupted", 0, 5)
    assert (second.ended, second.from_step, second.step) == ("finished", 5, 8)
    assert [event.step for event in events if event.kind == "progress"] == [*range(1, 9)]


def test_execute__commits_by_time(ledger):
    now, events, committed = iter(range(1000)), [], threading.Event()

    def observe(event):
        events.append(event)
        if event.kind == "committed":
            committed.set()
        elif event.step == 5:
            assert committed.wait(60)
            time.sleep(0.05)  # the commit is over when its observer is

    run(ledger, clock=lambda: next(now), terms=paced(3.0), observe=observe)
    # Each look at the clock takes a second: at the start, at each step, and two for a commit.
    assert [event.step for event in events if event.kind == "committed"] == [3, 6]


class SlowCheckpoints:
    """Files of a disk that writes checkpoints only when a gate is open."""

    def __init__(self, files, gate):
        self.files, self.gate = files, gate

    def __getattr__(self, name):
        return getattr(self.files, name)

    def open_output_stream(self, path):
        assert "checkpoints" not in path or self.gate.wait(60)
        return self.files.open_output_stream(path)


def run_slowly(ledger, *, most_s, until):
    """Steps of 10 s with a commit due at each, on a disk that is slow until a step is done."""
    gate, events = threading.Event(), []

    def observe(event):
        events.append(event)
        if (event.kind, event.step) == ("progress", until):
            gate.set()

    files = SlowCheckpoints(ledger.storage.files, gate)
    run(
        Ledger(replace(ledger.storage, files=files)),
        observe=observe,
        clock=lambda: 10.0 * sum(event.kind == "progress" for event in events),
        terms=Terms(pace=Pace(least_s=5.0, most_s=most_s)),
    )
    return [(e.kind, e.step) for e in events if e.kind in ("progress", "committed")]


def test_execute__trains_on_while_a_commit_is_slow(ledger):
    told = run_slowly(ledger, most_s=1e9, until=6)
    assert told[:6] == [("progress", step) for step in range(1, 7)]
    assert ("committed", 1) in told[6:]


def test_execute__waits_for_a_commit_when_the_next_is_overdue(ledger):
    told = run_slowly(ledger, most_s=25.0, until=4)
    # Due at 15 s, overdue at 40 s.
    assert told.index(("committed", 1)) < told.index(("progress", 5))


def by_step(events: list[Event], *notices: str) -> Callable[[], str]:
    """What is announced after the first step, the second, ...; the last of them ever after."""

    def notice() -> str:
        done = sum(event.kind == "progress" for event in events)
        return notices[min(done, len(notices)) - 1] if done else ""

    return notice


def test_execute__after_a_notice_each_step_is_committed(ledger):
    events: list[Event] = []
    notice = by_step(events, "", "", "", *["spot"] * 3, "spot, and now")
    run(ledger, notice=notice, observe=events.append, terms=paced(1e9))
    assert [event.step for event in events if event.kind == "committed"] == [4, 5, 6, 7, 8]
    noticed = [(event.step, event.message) for event in events if event.kind == "noticed"]
    assert noticed == [(4, "spot"), (7, "spot, and now")]
    assert events[-1].kind == "finished"


def test_execute__a_notice_that_nothing_follows_wears_off(ledger):
    events, now = list[Event](), iter(range(0, 100_000, 100))
    run(
        ledger,
        notice=by_step(events, "", "spot"),
        observe=events.append,
        terms=paced(1e9),
        clock=lambda: next(now),
    )
    # Each look at the clock takes 100 s: one at the notice, two for a commit, one at a step.
    assert [event.step for event in events if event.kind == "committed"] == [2, 3, 4]


@pytest.mark.parametrize(("step_s", "claimed"), [(1, "spot"), (100, "")])
def test_execute__a_notice_that_wore_off_excuses_no_later_death(
    ledger, monkeypatch, step_s, claimed
):
    """What ends a process long after it was told of an end is not that end."""
    events, now, held = list[Event](), iter(range(0, 10**6, step_s)), []
    monkeypatch.setattr(Lease, "release", lambda lease: held.append(lease.claim.notice))
    run(
        ledger,
        notice=by_step(events, "", "spot"),
        observe=events.append,
        terms=paced(1e9),
        clock=lambda: next(now),
    )
    assert held == [claimed]


def test_execute__a_notice_before_the_first_step_excuses_what_follows(ledger):
    """As where features are computed first, or data are read, for minutes."""
    folder = ledger.stage(STAGE.digest)

    def prepare(*_, **__):
        limit = time.monotonic() + 30
        told = set[tuple[int, str]]()
        while (1, "spot") not in told:
            claims = claims_at(folder.storage, folder.at("lease")).values()
            told = {(claim.attempt, claim.notice) for claim in claims}
            assert time.monotonic() < limit
            time.sleep(0.01)
        raise SystemExit
        yield

    with pytest.raises(SystemExit):
        run(ledger, trainer=Only(prepare), notice=lambda: "spot")


@pytest.mark.parametrize(
    ("name", "config"), [("train", Toy(steps=2)), ("noise", ToyNoise())], ids=["train", "noise"]
)
def test_execute__one_that_died_after_its_last_step_only_ends(ledger, monkeypatch, name, config):
    stage = planned(name, config, seed=0)

    def die(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("ablation.stage_writer.StageWriter.finish", die)
        with pytest.raises(SystemExit):
            run(ledger, stage)
    assert isinstance(ledger.standing(stage.digest), Begun)
    assert isinstance(run(ledger, stage), Finished)


@pytest.mark.parametrize("metrics", [{"loss": None}, {"loss": "low"}, {"loss": [1.0]}])
def test_execute__metrics_that_are_no_numbers_are_the_trainers_failure(ledger, metrics):
    def steps(*_, **__):
        yield ToyProgress(1, 1, metrics, nothing, dict)

    outcome = run(ledger, trainer=Only(steps))
    assert isinstance(outcome, Failed)
    assert "Metrics must be numbers, got {'loss': " in outcome.error


def test_execute__a_stage_that_cannot_even_begin_is_the_trainers_failure(ledger):
    def steps(*_, **__):
        raise ImportError("no such library")

    outcome = run(ledger, trainer=Only(steps))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("ImportError: no such library (not tried again: ")
    assert [attempt.ended for attempt in ledger.stage(STAGE.digest).attempts()] == ["failed"]


@pytest.mark.parametrize(
    ("raised", "rule"),
    [
        (MemoryError("all of it"), "too little memory is never retried"),
        (LookupError("no data"), "max_failures is 0"),
    ],
)
def test_execute__what_ended_the_group_before_is_recorded_by_this_one(ledger, raised, rule):
    """Its lead was ended while it waited for the peer that raised."""
    stage = ledger.stage(STAGE.digest)
    stage.begin_attempt(time_ms=1, from_step=0, workers=2, run="test", provenance={})
    outcome = run(ledger, group=Group(workers=2, raised=raised))
    assert isinstance(outcome, Failed)
    assert outcome.error == f"{type(raised).__name__}: {raised} (not tried again: {rule})"
    (attempt,) = stage.attempts()
    assert (attempt.ended, attempt.error) == ("failed", f"{type(raised).__name__}: {raised}")


def test_execute__a_failure_whose_outcome_was_not_written_is_not_forgotten(ledger, monkeypatch):
    def die(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("ablation.stage_writer.StageWriter.fail", die)
        with pytest.raises(SystemExit):
            run(ledger, planned("train", Toy(memory_at=2), seed=0), terms=paced(0, max_failures=9))
    (digest,) = ledger.storage.names("stages")
    assert ledger.outcome(digest) is None
    outcome = run(
        ledger, planned("train", Toy(memory_at=2), seed=0), terms=paced(0, max_failures=9)
    )
    assert isinstance(outcome, Failed)
    assert "too little memory is never retried" in outcome.error
    assert len(ledger.stage(digest).attempts()) == 1


def test_execute__trainer_error_is_a_failed_outcome(ledger, scratch):
    stage, events = planned("train", Toy(fail_at=3), seed=0), []
    outcome = run(ledger, stage, observe=events.append)
    assert isinstance(outcome, Failed)
    error = "RuntimeError: the toy was asked to fail at step 3"
    assert outcome.error == f"{error} (not tried again: max_failures is 0)"
    assert "_accidents" in outcome.detail
    assert outcome == ledger.outcome(stage.digest)
    assert (events[-1].kind, events[-1].message) == ("failed", outcome.error)
    (attempt,) = ledger.stage(stage.digest).attempts()
    assert (attempt.ended, attempt.step, attempt.error) == ("failed", 2, error)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("where", ["save", "export"])
def test_execute__trainer_error_while_writing_is_a_failed_outcome(ledger, scratch, where):
    def steps(config, **_):
        yield ToyProgress(1, 1, {}, explode if where == "save" else nothing)
        return ToyResult({}, explode)

    outcome = run(ledger, trainer=Only(steps))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("OSError: the disk of the trainer is full (not")
    assert ledger.journal(STAGE.digest) == ()
    assert list(scratch.iterdir()) == []


def forgetful(config, **_):
    for step in (1, 2, 3):
        yield ToyProgress(step, 3, {"loss": 1.0}, nothing)
    return ToyResult({}, nothing)


def test_execute__steps_must_go_on_where_they_were_saved(ledger):
    run(ledger, should_stop=stop_after(2))
    outcome = run(ledger, trainer=Only(forgetful))
    assert isinstance(outcome, Failed)
    assert "Steps must rise, got step 1 after step 2" in outcome.error


def test_execute__a_trainer_may_end_rather_than_stop(ledger):
    outcome = run(ledger, trainer=Only(forgetful), should_stop=stop_after(2))
    assert isinstance(outcome, Finished)
    assert len(ledger.journal(STAGE.digest)) == 3


def test_execute__no_result_without_a_stop_is_a_failure(ledger):
    def silent(config, **_):
        yield ToyProgress(1, 2, {}, nothing)

    outcome = run(ledger, trainer=Only(silent))
    assert isinstance(outcome, Failed)
    assert "must return its result, got None" in outcome.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_execute__interrupts_pass_and_are_recorded(ledger, scratch, error):
    closed = []

    def steps(config, **_):
        try:
            yield ToyProgress(1, 3, {"loss": 1.0}, nothing)
            raise error
        finally:
            closed.append(True)

    with pytest.raises(error):
        run(ledger, trainer=Only(steps))
    assert ledger.standing(STAGE.digest) == Begun(1, 3)
    (attempt,) = ledger.stage(STAGE.digest).attempts()
    assert attempt.ended == "interrupted"
    assert closed
    assert list(scratch.iterdir()) == []


def test_execute__errors_of_observer_and_storage_pass(ledger, tmp_path):
    def raising(event):
        if event.kind == "progress":
            raise RuntimeError("the observer broke")

    with pytest.raises(RuntimeError, match="the observer broke"):
        run(ledger, observe=raising)
    assert ledger.outcome(STAGE.digest) is None
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Could not read"):
        run(Ledger.open(tmp_path / "file"))


class Switched:
    """A file system that can be switched off."""

    def __init__(self, files: Any) -> None:
        self.files, self.down = files, False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise OSError("no route to host")
        return getattr(self.files, name)


@pytest.fixture
def brief(monkeypatch) -> None:
    for module in ("saving", "worker"):
        monkeypatch.setattr(f"ablation.{module}.BRIEF", Patience(0.1, print))


def switched(ledger: Ledger) -> tuple[Ledger, Switched]:
    files = Switched(ledger.storage.files)
    return Ledger(replace(ledger.storage, files=files)), files


def run_until_interrupted(ledger: Ledger, files: Switched) -> None:
    """The storage is away from step 4 on, for good; then the grace is over."""

    def observe(event: Any) -> None:
        if event.kind == "progress" and event.step == 4:
            files.down = True
        if event.kind == "paused" and "Waiting" in event.message:
            os.kill(os.getpid(), signal.SIGINT)

    terms = replace(paced(0, run="first"), patience_s=120.0)
    with pytest.raises(KeyboardInterrupt), stoppable(0.3, print) as stop_asked:
        run(ledger, observe=observe, terms=terms, should_stop=stop_asked)


def test_execute__an_interrupt_waits_for_no_storage(ledger, hasty, brief, caplog):
    """It ends at once, and the stage stays claimed: its checkpoint is still being written."""
    away, files = switched(ledger)
    begun = time.monotonic()
    run_until_interrupted(away, files)
    assert time.monotonic() - begun < 60
    assert ledger.standing(STAGE.digest) == Begun(3, 8)
    assert claims(ledger)
    assert "the lease on it will expire" in caplog.text
    (attempt,) = ledger.stage(STAGE.digest).attempts()
    assert attempt.ended is None
    files.down = False
    wait_for_the_end_of("saving")


def test_execute__what_an_interrupt_leaves_commits_nothing_later(ledger, hasty, brief):
    """The stage is another's by the time the storage answers."""
    away, files = switched(ledger)
    run_until_interrupted(away, files)
    terms = paced(0, run="second")
    assert run(ledger, terms=terms, should_stop=stop_after(3)) == "stopped"
    stage = ledger.stage(STAGE.digest)
    commits, journal = [*stage.commits()], ledger.journal(STAGE.digest)
    assert commits[0].step == 6
    files.down = False
    wait_for_the_end_of("saving")
    assert [*stage.commits()] == commits
    assert ledger.journal(STAGE.digest) == journal
    first, second = stage.attempts()
    assert (first.ended, second.ended, second.from_step) == ("lost", "interrupted", 3)
    assert isinstance(run(ledger, terms=terms), Finished)
    assert [record.step for record in ledger.journal(STAGE.digest)] == [*range(1, 9)]


def test_execute__an_interrupt_lets_a_sound_storage_finish(ledger):
    """So that nobody has to wait for the lease to expire."""

    def observe(event: Any) -> None:
        if event.kind == "progress" and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ledger, observe=observe)
    assert not claims(ledger)
    (attempt,) = ledger.stage(STAGE.digest).attempts()
    assert attempt.ended == "interrupted"


def claims(ledger: Ledger) -> list[str]:
    stage = ledger.stage(STAGE.digest)
    return names_at(stage.storage, stage.at("lease"))


def wait_for_the_end_of(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(60)
            assert not thread.is_alive()


KILLED = """
import os, signal
from pathlib import Path
from ablation.process import scratch_folder
scratch = scratch_folder()
folder = Path(scratch.name)
(folder / "copied").mkdir()
(folder / "copied" / "weights").write_bytes(bytes(1000))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_execute__removes_what_killed_workers_left(ledger, scratch, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(scratch))
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    assert [*scratch.glob("*/copied/weights")]
    run(ledger)
    assert [*scratch.iterdir()] == []
