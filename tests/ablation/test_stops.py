"""Cells that a person has stopped: the mark, who heeds it, and what is said of them."""

import time

import pytest

from ablation.cells import Begun, Failed, Finished, Stopped, Waiting
from ablation.ledger import Ledger
from ablation.run_words import status
from ablation.stops import (
    as_stopped,
    heeding,
    standings_of,
    stop_cells,
    stopped_heads,
    stopped_titles,
    want_all,
)
from ablation.testing import Toy, toy_cell

SLOW, FAST = "slow, seed 0", "fast | wild, seed 0"


def test_marks__add_up_until_all_is_wanted_again(ledger):
    assert stopped_titles(ledger, "toys") == frozenset()
    stop_cells(ledger, "toys", [SLOW])
    stop_cells(ledger, "toys", [FAST, SLOW])
    assert stopped_titles(ledger, "toys") == {SLOW, FAST}
    assert stopped_titles(ledger, "others") == frozenset()
    want_all(ledger, "toys")
    assert stopped_titles(ledger, "toys") == frozenset()


def test_want_all__writes_nothing_where_nothing_was_stopped(tmp_path):
    want_all(Ledger.open(tmp_path / "none"), "toys")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["[", "[1]", '{"a": 1}', '"slow"', "[" * 100_000])
def test_marks__that_are_damaged_stop_nothing(ledger, text, caplog):
    ledger.write_study("toys", {"stopped.json": text})
    assert stopped_titles(ledger, "toys") == frozenset()
    assert "toys/stopped.json stops no cell" in caplog.text


def test_heads__are_of_the_cells_that_are_marked(toy_plan, ledger):
    plan = toy_plan()
    stop_cells(ledger, "toys", [FAST, "a row that was, seed 0"])
    assert stopped_heads(plan, ledger) == {plan.cells[1].stages[0].digest}


def test_stages_of_a_stopped_cell__stand_so_unless_they_have_ended():
    cells = [toy_cell("a", Toy()), toy_cell("b", Toy(rate=0.5)), toy_cell("c", Toy(rate=0.6))]
    (a, b, c), scores = ([cell.stages[n].digest for cell in cells] for n in (0, 1))
    standings = dict.fromkeys(scores, Waiting()) | {a: Begun(3, 8), b: Begun(4, 8), c: Waiting()}
    found = as_stopped(standings, cells, [a, c])
    assert [found[d] for d in (a, b, c)] == [Stopped(3, 8), Begun(4, 8), Stopped(0, 0)]
    assert [found[d] for d in scores] == [Stopped(), Waiting(), Stopped()]
    assert [cell.ended(found) for cell in cells] == [True, False, True]
    ended = standings | {a: Finished({}), c: Failed("no")}
    found = as_stopped(ended, cells, [a, c])
    assert [found[a], found[scores[0]], found[c]] == [Finished({}), Stopped(), Failed("no")]


def test_run__of_a_stopped_cell_was_killed_in_mlflows_words():
    assert status([Stopped(3, 8), Stopped()]) == "KILLED"
    assert status([Finished({}), Stopped()]) == "KILLED"
    assert status([Stopped(3, 8), Failed("no")]) == "FAILED"


def test_driver__heeds_what_is_stopped_and_takes_nothing_back(toy_plan, ledger):
    plan = toy_plan()
    slow, fast = (cell.stages[0].digest for cell in plan.cells[:2])
    stop_cells(ledger, "toys", [SLOW])
    with heeding(plan, ledger, every_s=0.01) as stopped:
        assert stopped() == {slow}
        want_all(ledger, "toys")
        stop_cells(ledger, "toys", [FAST])
        end = time.monotonic() + 60
        while stopped() != {slow, fast}:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert standings_of(plan, ledger)[slow] == Waiting()
    assert standings_of(plan, ledger)[fast] == Stopped()


def test_driver__goes_on_where_the_storage_is_away(toy_plan, ledger, monkeypatch):
    plan, reads = toy_plan(), list[str]()

    def refuse(storage, path):
        reads.append(path)
        raise OSError("away")

    with heeding(plan, ledger, every_s=0.01) as stopped:
        monkeypatch.setattr("ablation.storage.Storage._content", refuse)
        end = time.monotonic() + 60
        while len(reads) < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        monkeypatch.undo()
        stop_cells(ledger, "toys", [SLOW])
        while not stopped():
            assert time.monotonic() < end
            time.sleep(0.01)
