"""A cell of one to two workers on real nodes: it shrinks when one is lost, and grows again."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, takewhile
from pathlib import Path
from secrets import token_hex

import pytest

from ablation.plan import PlannedStage
from ablation.protocol import Place
from ablation.toy import TRAINER
from chaos.nodes import Nodes
from chaos.processes import parent
from chaos.world import Scale, World

pytestmark = pytest.mark.chaos

_WITHIN_S = 400.0
_FOR_EVER = Scale(steps=1_000_000, sleep_s=0.05, seeds=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    with Nodes(2, 1, environment, tmp_path / "nodes.txt") as nodes:
        world = World(
            folder=tmp_path,
            study=_FOR_EVER.write(tmp_path),
            workers=[1, 2],
            concurrency=1,
            nodes=nodes,
            environment=environment,
        )
        world.start()
        yield world
        world.clear()


def test_cell__shrinks_when_a_node_is_lost_and_grows_when_one_comes(world):
    """And it computes what one that nothing disturbs computes, each step of it once."""
    assert world.nodes is not None
    stage = next(s for s in world.plan.stages.values() if s.name == "train")
    lead = _at_work(world, stage, [2])
    world.nodes.lose(parent(lead))
    _at_work(world, stage, [2, 1])
    world.nodes.add()
    _at_work(world, stage, [2, 1, 2])
    assert world.stop(signal.SIGTERM) == 130, world.log.read_text()
    journal = [(r.step, r.metrics) for r in world.ledger.journal(stage.digest)]
    assert journal == list(takewhile(lambda r: r[0] <= journal[-1][0], _undisturbed(stage)))


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
