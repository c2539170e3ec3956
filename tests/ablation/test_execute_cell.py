import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ablation.cells import Begun, Cell, Failed, Finished, Waiting
from ablation.execute import execute, never
from ablation.execute_cell import execute_cell
from ablation.executors.inline import run_inline
from ablation.group import Group, GroupOverError
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.storage import StorageError
from ablation.testing import (
    Toy,
    ToyNoise,
    ToyScore,
    ToyTrainer,
    ignore,
    new_ledger,
    paced,
    planned,
    stop_after,
    toy_cell,
)

STAGE = planned("train", Toy(), seed=0)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return new_ledger(tmp_path / "ledger")


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


def pair() -> tuple[Group, Group]:
    """Two workers of a group that run in two threads of this process."""
    passed: queue.Queue = queue.Queue()
    met = threading.Barrier(2, timeout=20)

    def lead(value):
        passed.put(value)
        met.wait()
        return value

    def other(value):
        met.wait()
        return passed.get(timeout=20)

    return Group(workers=2, share=lead), Group(workers=2, lead=False, share=other)


def both(ledger, stage=STAGE, **options) -> list:
    """What the two workers of a group return, or raise."""

    def one(group):
        try:
            return run(ledger, stage, group=group, **options)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, pair()))


def test_execute__a_group_begins_at_one_step_and_its_lead_alone_writes(ledger):
    run(ledger, should_stop=stop_after(3))
    events = []
    lead, other = both(ledger, observe=events.append)
    assert lead == other == ledger.outcome(STAGE.digest)
    assert events[0].kind == "resumed"
    assert len([event for event in events if event.kind == "finished"]) == 1
    attempts = ledger.stage(STAGE.digest).attempts()
    assert [(a.from_step, a.workers) for a in attempts] == [(0, 1), (3, 2)]
    assert both(ledger) == [ledger.outcome(STAGE.digest)] * 2


def test_execute__a_group_ends_with_the_stage_that_its_lead_left(ledger):
    stage = planned("train", Toy(fail_at=2), seed=0)
    lead, other = both(ledger, stage)
    assert isinstance(lead, GroupOverError)
    assert isinstance(other, RuntimeError)
    assert isinstance(ledger.outcome(stage.digest), Failed)
    lead, _ = both(ledger, should_stop=stop_after(2))
    assert isinstance(lead, GroupOverError)
    assert ledger.standing(STAGE.digest) == Begun(2, 8)
    assert both(ledger, should_stop=lambda: True) == ["stopped"] * 2


def test_execute__needs_a_finished_parent(ledger):
    score = planned("score", ToyScore(), seed=0, parent=STAGE.digest)
    with pytest.raises(StorageError, match="must be of a finished stage"):
        run(ledger, score)


def cell_run(ledger, cell: Cell, events: list) -> dict:
    return execute_cell(
        cell,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=events.append,
        should_stop=never,
        origin={"host": "here"},
    )


def test_execute_cell__skips_what_has_no_parent(ledger):
    cell = toy_cell("bad", Toy(fail_at=1), score=ToyScore(), probe=ToyScore())
    events = []
    outcomes = cell_run(ledger, cell, events)
    assert [type(outcome) for outcome in outcomes.values()] == [Failed]
    skipped = [(event.name, event.message) for event in events if event.kind == "skipped"]
    assert skipped == [("score", "not run: train failed"), ("probe", "not run: train failed")]
    lonely = Cell(row="x", seed=0, stages=(planned("score", ToyScore(), seed=1, parent="ab" * 10),))
    events.clear()
    assert cell_run(ledger, lonely, events) == {}
    assert events[0].message == f"not run: {'ab' * 10} has not finished"


def test_execute_cell__noise_is_scored(ledger):
    outcomes = cell_run(ledger, toy_cell("noise", ToyNoise()), [])
    assert [type(outcome) for outcome in outcomes.values()] == [Finished, Finished]


def test_run_inline__stops_between_cells(ledger):
    run_inline(
        [toy_cell("a", Toy())],
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=ignore,
        should_stop=lambda: True,
    )
    assert ledger.storage.names("stages") == []


KILLED = """
import sys
from pathlib import Path
from ablation.executors.inline import run_inline
from ablation.protocol import Place
from ablation.execute import never
from ablation.testing import Toy, ToyTrainer, ignore, new_ledger, paced, toy_cell
folder = Path(sys.argv[1])
run_inline(
    [toy_cell("a", Toy(die_at=5, rate=0.3))], trainer=ToyTrainer(),
    ledger=new_ledger(folder / "ledger"), place=Place(data={"scratch": folder}),
    observe=ignore, should_stop=never, terms=paced(float(sys.argv[2])),
)
"""


@pytest.mark.parametrize("every_s", ["0", "1000"], ids=["with commits", "without a commit"])
def test_execute__death_leaves_no_trace_in_the_numbers(tmp_path, every_s):
    command = [sys.executable, "-c", KILLED, str(tmp_path), every_s]
    train, score = toy_cell("a", Toy(die_at=5, rate=0.3))
    assert subprocess.run(command, check=False).returncode == 17
    ledger = new_ledger(tmp_path / "ledger")
    assert ledger.standing(train.digest) == (Begun(4, 8) if every_s == "0" else Waiting())
    assert subprocess.run(command, check=False).returncode == 0
    quiet, events = new_ledger(tmp_path / "quiet"), []
    cell = toy_cell("a", Toy(rate=0.3))
    cell_run(quiet, cell, events)
    assert ledger.outcome(score.digest) == quiet.outcome(cell.stages[1].digest)
    assert [(r.step, r.metrics) for r in ledger.journal(train.digest)] == [
        (r.step, r.metrics) for r in quiet.journal(cell.stages[0].digest)
    ]
    first, second = ledger.stage(train.digest).attempts()
    assert (first.ended, second.ended) == ("lost", "finished")
    assert {"host", "user", "python", "packages", "trainer"} <= set(second.provenance)
