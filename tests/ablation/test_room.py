"""How many workers a cell begins with; no cluster is asked."""

import threading

import pytest

from ablation.executors import cluster
from ablation.executors.room import fitting, workers_on
from ablation.layout import Layout
from ablation.testing import Toy, ToyNoise, ToyTrainer, toy_cell

CELL = toy_cell("a", Toy(batch=12))


def workers(bounds: int | tuple[int, int], room: int, *cells) -> int:
    return fitting(Layout(workers=bounds), ToyTrainer(), cells or [CELL], room)


@pytest.mark.parametrize(("room", "got"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 4), (9, 4)], ids=str)
def test_fitting__is_the_room_within_the_bounds(room, got):
    assert workers((1, 4), room) == got


@pytest.mark.parametrize(("room", "got"), [(5, 4), (6, 6), (11, 6), (12, 12)])
def test_fitting__divides_the_batch(room, got):
    assert workers((1, 16), room) == got


def test_fitting__divides_every_cells_batch():
    other = toy_cell("b", Toy(batch=8))
    assert workers((1, 6), 6, CELL, other) == 4
    assert workers((1, 6), 3, CELL, other) == 2
    assert workers((1, 6), 6, toy_cell("noise", ToyNoise())) == 6


def test_fitting__never_is_less_than_the_least():
    """There it waits for room, and what the least cannot share was refused before."""
    assert workers((2, 4), 0) == 2
    assert workers((2, 4), 4, toy_cell("c", Toy(batch=7))) == 2
    assert workers(3, 9) == 3


@pytest.mark.parametrize(
    ("gpus", "node", "got"),
    [
        (0, {"CPU": 7.0}, 3),
        (0, {"memory": 9.0}, 0),
        (1, {"CPU": 7.0, "GPU": 2.0}, 2),
        (1, {"CPU": 7.0}, 0),
        (2, {"CPU": 64.0, "GPU": 7.0}, 3),
    ],
)
def test_workers_on__is_what_the_scarcest_allows(gpus, node, got):
    assert workers_on(node, Layout(cpus_per_worker=2, gpus_per_worker=gpus)) == got


def test_watching__says_it_whenever_the_last_node_with_room_has_gone(monkeypatch, caplog):
    counts, over = iter([1, 0, 0, 0, 2, 0]), threading.Event()

    def slots(layout: Layout) -> int:
        try:
            return next(counts)
        except StopIteration:
            over.set()
            return 0

    monkeypatch.setattr(cluster, "slots", slots)
    monkeypatch.setattr(cluster, "_ROOM_EVERY_S", 0.001)
    with cluster._watching(Layout()):
        assert over.wait(60)
    assert [record.message for record in caplog.records] == [
        "No node of the cluster has room for a cell: they wait for one."
    ] * 2
