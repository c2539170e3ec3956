"""A cell of one to two workers on real nodes: it shrinks when one is lost, and grows again."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, takewhile
from pathlib import Path
from secrets import token_hex

from ablation.plan import PlannedStage
from ablation.protocol import Place
from ablation.toy import TRAINER
from chaos.marks import LONG_FORM
from chaos.nodes import Nodes
from chaos.processes import parent
from chaos.world import Scale, World

pytestmark = LONG_FORM

_WITHIN_S = 400.0
_FOR_EVER = Scale(steps=1_000_000, sleep_s=0.05, seeds=1)
_SHORT = Scale(steps=300, sleep_s=0.1, seeds=1)


@contextmanager
def _world(folder: Path, scale: Scale, concurrency: int) -> Iterator[World]:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    with Nodes(2, 1, environment, folder / "nodes.txt") as nodes:
        world = World(
            folder=folder,
            study=scale.write(folder),
            workers=[1, 2],
            concurrency=concurrency,
            nodes=nodes,
            environment=environment,
        )
        world.start()
        try:
            yield world
        finally:
            world.clear()


def test_cell__shrinks_when_a_node_is_lost_and_grows_when_one_comes(tmp_path):
    """And it computes what one that nothing disturbs computes, each step of it once."""
    with _world(tmp_path, _FOR_EVER, 1) as world:
        assert world.nodes is not None
        stage = _first_training(world)
        lead = _at_work(world, stage, [2])
        world.nodes.lose(parent(lead))
        _at_work(world, stage, [2, 1])
        world.nodes.add()
        _at_work(world, stage, [2, 1, 2])
        assert world.stop(signal.SIGTERM) == 130, world.log.read_text()
    journal = [(r.step, r.metrics) for r in world.ledger.journal(stage.digest)]
    assert journal == list(takewhile(lambda r: r[0] <= journal[-1][0], _undisturbed(stage)))


def test_cells__that_all_counted_the_same_room_end_on_half_of_it(tmp_path):
    """Two at once see two free nodes, of which one has room; then a node is lost for good."""
    with _world(tmp_path, _SHORT, 2) as world:
        assert world.nodes is not None
        limit = time.monotonic() + _WITHIN_S
        while not (at_work := world.at_work()) and time.monotonic() < limit:
            time.sleep(0.2)
        world.nodes.lose(parent(next(iter(at_work.values())).pid))
        assert world.finish(within_s=2 * _WITHIN_S) == 0, world.log.read_text()


def _first_training(world: World) -> PlannedStage:
    return next(stage for stage in world.plan.stages.values() if stage.name == "train")


def _at_work(world: World, stage: PlannedStage, crews: list[int]) -> int:
    """The lead's process, once tries had these numbers of workers in turn, and the last works."""
    limit = time.monotonic() + _WITHIN_S
    while time.monotonic() < limit:
        assert not world.over(), world.log.read_text()
        attempts = world.ledger.stage(stage.digest).attempts()
        step = world.at_work().get(f"{stage.config.rate}/{stage.seed}")
        if step and step.at > attempts[-1].begun_ms / 1000 + 2:
            found = [workers for workers, _ in groupby(attempt.workers for attempt in attempts)]
            assert found == crews[: len(found)], world.log.read_text()
            if found == crews:
                return step.pid
        time.sleep(0.2)
    raise TimeoutError(world.log.read_text())


def _undisturbed(stage: PlannedStage) -> Iterator[tuple[int, dict[str, float]]]:
    quick = replace(stage.config, sleep_s=0.0)
    doing = TRAINER.stages()["train"].run(
        quick,
        seed=stage.seed,
        place=Place(),
        inputs=None,
        resume=None,
        should_stop=lambda: False,
    )
    for progress in doing:
        if progress.metrics:
            yield progress.step, dict(progress.metrics)
