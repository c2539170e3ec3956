import subprocess
import sys

import pytest

from ablation.cells import Begun, Cell, Failed, Finished, Waiting
from ablation.execute import execute, execute_cell, never
from ablation.executors.inline import run_inline
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.storage import StorageError
from ablation.testing import (
    Toy,
    ToyNoise,
    ToyScore,
    ToyTrainer,
    ignore,
    planned,
    stop_after,
    toy_cell,
)

STAGE = planned("train", Toy(), seed=0)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger.open(tmp_path / "ledger")


def run(ledger, stage=STAGE, *, trainer=None, observe=ignore, should_stop=never, **options):
    return execute(
        stage,
        trainer=trainer or ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=observe,
        should_stop=should_stop,
        origin={"host": "here"},
        **{"checkpoint_every_s": 0.0, **options},
    )


def test_execute__followers_write_nothing_and_start_with_the_lead(ledger):
    run(ledger, should_stop=stop_after(3))
    before = ledger.stage(STAGE.digest).attempts()
    step = ledger.stage(STAGE.digest).resume_step()
    assert step == 3
    events = []
    follower = run(ledger, lead=False, resume_step=step, workers=2, observe=events.append)
    assert events == []
    assert ledger.stage(STAGE.digest).attempts() == before
    assert ledger.outcome(STAGE.digest) is None
    assert run(ledger, resume_step=step, workers=2) == follower
    assert ledger.stage(STAGE.digest).attempts()[-1].workers == 2


def test_execute__followers_stop_and_fail_aloud(ledger):
    assert run(ledger, lead=False, should_stop=stop_after(2)) is None
    with pytest.raises(RuntimeError, match="asked to fail"):
        run(ledger, planned("train", Toy(fail_at=2), seed=0), lead=False)
    assert list(ledger.storage.names("stages")) == []


def test_execute__signals_are_asked_alike_in_every_worker(ledger):
    asked = {True: [], False: []}
    for lead in (False, True):
        calls = asked[lead]
        run(
            ledger,
            lead=lead,
            workers=2,
            resume_step=0,
            should_stop=lambda calls=calls: calls.append("stop") or len(calls) > 8,
            save_now=lambda calls=calls: bool(calls.append("save")),
        )
    assert asked[True] == asked[False]
    assert asked[True][:3] == ["stop", "save", "stop"]


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
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.execute import never
from ablation.testing import Toy, ToyTrainer, ignore, toy_cell
folder = Path(sys.argv[1])
run_inline(
    [toy_cell("a", Toy(die_at=5, rate=0.3))], trainer=ToyTrainer(),
    ledger=Ledger.open(folder / "ledger"), place=Place(data={"scratch": folder}),
    observe=ignore, should_stop=never, checkpoint_every_s=float(sys.argv[2]),
)
"""


@pytest.mark.parametrize("every_s", ["0", "1000"], ids=["with commits", "without a commit"])
def test_execute__death_leaves_no_trace_in_the_numbers(tmp_path, every_s):
    command = [sys.executable, "-c", KILLED, str(tmp_path), every_s]
    train, score = toy_cell("a", Toy(die_at=5, rate=0.3))
    assert subprocess.run(command, check=False).returncode == 17
    ledger = Ledger.open(tmp_path / "ledger")
    assert ledger.standing(train.digest) == (Begun(4, 8) if every_s == "0" else Waiting())
    assert subprocess.run(command, check=False).returncode == 0
    quiet, events = Ledger.open(tmp_path / "quiet"), []
    cell = toy_cell("a", Toy(rate=0.3))
    cell_run(quiet, cell, events)
    assert ledger.outcome(score.digest) == quiet.outcome(cell.stages[1].digest)
    assert [(r.step, r.metrics) for r in ledger.journal(train.digest)] == [
        (r.step, r.metrics) for r in quiet.journal(cell.stages[0].digest)
    ]
    first, second = ledger.stage(train.digest).attempts()
    assert (first.ended, second.ended) == (None, "finished")
    assert {"host", "user", "python", "packages", "trainer"} <= set(second.provenance)
