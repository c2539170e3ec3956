"""How far a study is, by what the ledger holds of it."""

import time
from dataclasses import replace

import pytest

from ablation.backlog import Progress, progress
from ablation.cells import Failed, Finished
from ablation.executors.inline import run_inline
from ablation.lease import Lease, acquire
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.provenance import now_ms
from ablation.stops import stop_cells
from ablation.testing import ToyTrainer, ignore, paced, stop_after


def run(plan, ledger: Ledger, cells, **more) -> None:
    run_inline(
        cells,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=ignore,
        terms=replace(paced(0.0), max_failures=0),
        **more,
    )


def test_progress__of_a_study_that_has_not_begun(toy_plan, ledger):
    plan = toy_plan()
    found = progress(plan, ledger)
    assert (found.cells, found.done, found.running, found.failed) == (len(plan.cells), 0, 0, 0)
    assert found.left_s is None
    words = f"0 of {len(plan.cells)} cells done, 0 running, {len(plan.cells)} waiting"
    assert str(found) == f"{words}, no telling yet when it ends"


def test_progress__counts_cells_as_they_come(toy_plan, ledger):
    plan = toy_plan(**{"rate: 0.3": "rate: 0.3, fail_at: 2"})
    slow, fast = plan.cells[:2]
    failing = sum(cell.row == fast.row for cell in plan.cells)
    run(plan, ledger, [slow])
    run(plan, ledger, [fast])
    found = progress(plan, ledger)
    assert (found.done, found.failed, found.running) == (1, 1, 0)
    run(plan, ledger, plan.cells)
    found = progress(plan, ledger)
    assert (found.done, found.failed) == (len(plan.cells) - failing, failing)
    assert found.left_s == 0.0
    assert "left" not in str(found)


def test_progress__a_cell_runs_while_somebody_holds_a_stage_of_it(toy_plan, ledger):
    plan = toy_plan()
    stage = ledger.stage(plan.cells[1].stages[0].digest)
    held = acquire(stage.storage, stage.at("lease"), run="a", now_ms=now_ms, beat_s=0.1)
    assert isinstance(held, Lease)
    end = time.monotonic() + 60
    while not (found := progress(plan, ledger)).worked_s and time.monotonic() < end:
        time.sleep(0.05)
    assert found.running == 1
    assert found.worked_s == found.trained_s > 0, "its beats count, for its attempt has no end"
    held.release()
    assert progress(plan, ledger).running == 0


def test_progress__who_has_said_nothing_for_long_runs_no_more(toy_plan, ledger):
    plan = toy_plan()
    stage = ledger.stage(plan.cells[1].stages[0].digest)
    held = acquire(
        stage.storage, stage.at("lease"), run="a", now_ms=lambda: now_ms() - 400_000, beat_s=0.1
    )
    assert isinstance(held, Lease)
    assert progress(plan, ledger).running == 0
    held.release()


def test_progress__a_cell_runs_beside_an_evaluation_of_it_that_failed(toy_plan, ledger):
    plan = toy_plan(**{"evaluate: [score]": "evaluate: [{score: {fail_at: 1}}, probe]"})
    first, second = plan.cells[:2]
    run(plan, ledger, [first, second])
    train, score, probe = (ledger.stage(stage.digest) for stage in first)
    assert isinstance(score.outcome(), Failed)
    assert isinstance(probe.outcome(), Finished)
    assert first.idle(ledger.standings(plan.stages))
    probe.storage.remove(probe.at(""))
    assert not first.idle(ledger.standings(plan.stages))
    found = progress(plan, ledger)
    assert (found.running, found.failed) == (0, 2)
    held = acquire(probe.storage, probe.at("lease"), run="a", now_ms=now_ms, beat_s=0.1)
    assert isinstance(held, Lease)
    found = progress(plan, ledger)
    assert (found.running, found.failed) == (1, 1)
    held.release()
    train.storage.remove(train.at(""))
    assert not first.idle(ledger.standings(plan.stages)), "it is trained again"


def test_progress__knows_what_is_left_by_what_others_took(toy_plan, ledger):
    """Of a stage that has begun, the share that is not committed yet."""
    plan = toy_plan(**{"rate: 0.1": "rate: 0.1, steps: 8", "rate: 0.3": "rate: 0.3, steps: 8"})
    slow, fast, noise = plan.cells[:3]
    run(plan, ledger, [slow, noise])
    ticks = progress(plan, ledger)
    assert ticks.left_s is not None
    assert ticks.left_s > 0
    run(plan, ledger, [fast], should_stop=stop_after(5))
    assert 0 < (progress(plan, ledger).left_s or 0) < ticks.left_s


@pytest.mark.parametrize(
    ("left_s", "recoveries", "said"),
    [
        (None, 0, "no telling yet when it ends"),
        (600.0, 1, "1 recovery, about 10 min left"),
        (0.0, 2, "2 recoveries"),
    ],
)
def test_progress__in_words(left_s, recoveries, said):
    found = Progress(
        cells=9,
        done=3,
        failed=0,
        stopped=1,
        running=2,
        worked_s=120.0,
        trained_s=100.0,
        recoveries=recoveries,
        left_s=left_s,
    )
    assert str(found) == (
        "3 of 9 cells done, 2 running, 3 waiting, 1 stopped, "
        f"2 min of work (2 min of training), {said}"
    )


def test_progress__leaves_out_what_is_stopped(toy_plan, ledger):
    """A stop is no failure, and what is left of it does not count."""
    plan = toy_plan()
    run(plan, ledger, plan.cells[:3])
    before = progress(plan, ledger)
    stop_cells(ledger, "toys", [cell.title for cell in plan.cells[1:5]])
    found = progress(plan, ledger)
    assert (found.done, found.failed, found.stopped) == (3, 0, 2)
    assert 0 < (found.left_s or 0) < (before.left_s or 0)
