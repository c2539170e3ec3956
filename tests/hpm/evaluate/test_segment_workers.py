"""Two processes run this file as a script; what they leave is compared with one worker's."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed

from blocks import CONFIG, RECIPE, write_blocks
from hpm.evaluate.segment.run import run

TESTS = Path(__file__).parents[2]
# One update, after which rounding has not yet grown; each worker has its half of each of two parts.
ONCE = replace(
    CONFIG, optim=replace(RECIPE, epochs=1, batch_size=24, accumulate=2, warmup_epochs=0)
)


def finish(stage, folder, save_at=None):
    """Run to the end; keep the state of the last step (or `save_at`) and the export."""
    folder.mkdir()
    while True:
        try:
            progress = next(stage)
        except StopIteration as end:
            end.value.export(folder)
            return
        if progress.step == (save_at or progress.total):
            progress.save(folder)


def work(rank, export, root, target):
    distributed.init_process_group(
        "gloo", init_method=f"file://{target}/meeting", rank=rank, world_size=2
    )
    place = SimpleNamespace(data={"blocks": root}, threads=1, loaders=0, download=False)
    given = {"seed": 0, "place": place, "inputs": export, "should_stop": lambda: False}
    finish(run(ONCE, resume=None, **given), target / f"whole-{rank}")
    finish(run(ONCE, resume=None, **given), target / f"part-{rank}", save_at=2)
    finish(run(ONCE, resume=target / f"part-{rank}", **given), target / f"rest-{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_blocks(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="module")
def shared(encoder, root, tmp_path_factory):
    """The folder of all that two workers leave, by name and rank."""
    folder = tmp_path_factory.mktemp("shared")
    given = [str(path) for path in (encoder, root, folder)]
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), *given], env={**os.environ, "PYTHONPATH": paths}
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    return folder


def kept(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def counts(folder):
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        return {name: arrays[name].tolist() for name in arrays}


def test_workers__hold_the_same_and_resume_the_same(shared):
    whole = kept(shared / "whole-0")
    for name in ("whole-1", "rest-0", "rest-1"):
        torch.testing.assert_close(kept(shared / name), whole, rtol=0, atol=0)
        assert counts(shared / name) == counts(shared / "whole-0")


def test_workers__validate_as_one_does_wherever_they_resume(shared, encoder, root, tmp_path):
    place = SimpleNamespace(data={"blocks": root}, threads=1, loaders=0, download=False)
    given = {"seed": 0, "place": place, "inputs": encoder, "should_stop": lambda: False}
    # From the same weights, one worker's pixels are the same bits.
    finish(run(ONCE, resume=shared / "part-0", **given), tmp_path / "resumed")
    assert counts(tmp_path / "resumed") == counts(shared / "rest-0")
    torch.testing.assert_close(
        kept(tmp_path / "resumed")["scores"], kept(shared / "rest-1")["scores"], rtol=0, atol=0
    )


def test_workers__share_a_step_as_one_takes_it(shared, encoder, root, tmp_path):
    place = SimpleNamespace(data={"blocks": root}, threads=1, loaders=0, download=False)
    given = {"seed": 0, "place": place, "inputs": encoder, "should_stop": lambda: False}
    finish(run(ONCE, resume=None, **given), tmp_path / "alone", save_at=1)
    alone, both = (kept(folder)["training"] for folder in (tmp_path / "alone", shared / "whole-0"))
    assert alone["last_loss"] == pytest.approx(both["last_loss"], rel=1e-5)
    # What Adam has seen: the mean of the gradients.
    ours, theirs = (state["optimizer"]["state"] for state in (alone, both))
    assert ours.keys() == theirs.keys()
    for name, moments in ours.items():
        torch.testing.assert_close(
            moments["exp_avg"], theirs[name]["exp_avg"], rtol=1e-3, atol=1e-6
        )


if __name__ == "__main__":
    work(int(sys.argv[1]), *map(Path, sys.argv[2:]))
