"""A driver without a supervisor whose cluster is gone for good; its study goes on elsewhere."""

import os
import time
from pathlib import Path
from secrets import token_hex

from chaos.marks import LONG_FORM
from chaos.nodes import Nodes
from chaos.verdict import faults_of
from chaos.world import Scale, World

pytestmark = LONG_FORM

_WITHIN_S = 300.0


def test_driver__says_that_its_cluster_is_lost_and_another_one_goes_on(tmp_path: Path) -> None:
    """Without the study's file, which the ledger has."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    scale = Scale(steps=300, sleep_s=0.1, seeds=1)
    study = scale.write(tmp_path)
    with Nodes(1, 2, environment, tmp_path / "nodes.txt") as nodes:
        world = World(folder=tmp_path, study=study, nodes=nodes, environment=environment)
        driver = world.launch("run")
        try:
            limit = time.monotonic() + _WITHIN_S
            while not world.at_work():
                assert driver.poll() is None, world.log.read_text()
                assert time.monotonic() < limit, world.log.read_text()
                time.sleep(0.2)
            nodes.cut()
            assert driver.wait(_WITHIN_S) == os.EX_TEMPFAIL, world.log.read_text()
        finally:
            driver.kill()
            driver.wait()
    said = world.log.read_text()
    assert f"The cluster at '{nodes.address}' was lost: " in said
    assert "Traceback" not in said
    with Nodes(1, 2, environment, tmp_path / "others.txt") as others:
        world.move(others)
        resumed = world.resume()
        try:
            assert resumed.wait(_WITHIN_S) == 0, world.log.read_text()
        finally:
            resumed.kill()
            resumed.wait()
    (tmp_path / "undisturbed").mkdir()
    undisturbed = World(
        folder=tmp_path / "undisturbed", study=scale.write(tmp_path / "undisturbed")
    )
    assert undisturbed.launch("run", "--inline").wait(_WITHIN_S) == 0
    assert list(faults_of(world, undisturbed.ledger)) == []
