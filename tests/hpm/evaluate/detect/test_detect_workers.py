"""Two processes run this file as a script; what they leave is compared with one worker's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from hpm.evaluate.detect import found
from hpm.evaluate.detect.config import Detect, DetectData, VitDetRecipe
from hpm.evaluate.detect.stage import run

# Every region is learned from, so that two halves of a batch have the mean of the whole.
CONFIG = Detect(
    data=DetectData(name="blocks"),
    image_size=32,
    min_scale=0.8,
    max_scale=1.25,
    channels=8,
    convolutions=1,
    box_width=16,
    anchors=8,
    regions=8,
    proposals=20,
    optim=VitDetRecipe(
        epochs=1, warmup_epochs=0.0, base_lr=0.05, batch_size=4, precision="float32"
    ),
)
UPDATES, SEARCHES = 3, 3


def start(export, root, resume=None):
    found.BATCH = 2
    place = SimpleNamespace(data={"blocks": root}, threads=1, loaders=0, download=False)
    return run(CONFIG, seed=0, place=place, inputs=export, resume=resume, should_stop=lambda: False)


def finish(stage, folder, save_at=()):
    """Run to the end; keep states, metrics and what was found."""
    folder.mkdir()
    told = []
    while True:
        try:
            progress = next(stage)
        except StopIteration as end:
            (folder / "metrics.json").write_text(json.dumps([told, end.value.metrics]))
            end.value.export(folder)
            return
        told.append(progress.metrics)
        if progress.step in save_at:
            (folder / str(progress.step)).mkdir()
            progress.save(folder / str(progress.step))


def work(rank, export, root, target):
    distributed.init_process_group(
        "gloo", init_method=f"file://{target}/meeting", rank=rank, world_size=2
    )
    at = (UPDATES, UPDATES + 1, UPDATES + SEARCHES)
    finish(start(export, root), target / f"whole-{rank}", save_at=at)
    # A state from between two batches that were searched at once.
    resume = target / f"whole-{rank}" / str(UPDATES + 1)
    finish(start(export, root, resume), target / f"rest-{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(encoder, blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    given = [str(path) for path in (encoder, blocks.data["blocks"], folder)]
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), *given]) for rank in range(2)]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    return folder


def kept(folder):
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize("step", [UPDATES, UPDATES + 1, UPDATES + SEARCHES])
def test_workers__hold_the_same_state(shared, step):
    first, second = (kept(shared / f"whole-{rank}" / str(step)) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["whole-1", "rest-0", "rest-1"])
def test_workers__find_the_same_wherever_they_resume(shared, name):
    for file in ("detections.json", "metrics.json"):
        mine, theirs = (json.loads((shared / n / file).read_text()) for n in ("whole-0", name))
        assert (mine[1] == theirs[1]) if file == "metrics.json" else (mine == theirs)


def test_workers__learn_what_one_learns(shared, encoder, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(found, "BATCH", found.BATCH)
    finish(start(encoder, blocks.data["blocks"]), tmp_path / "alone", save_at=(UPDATES,))
    # The order of sums differs, and how the few regions on objects are weighed.
    alone, together = (
        kept(folder / str(UPDATES))["training"]["network"]
        for folder in (tmp_path / "alone", shared / "whole-0")
    )
    apart = sum(((alone[n] - together[n]) ** 2).sum() for n in alone)
    before = _initial(encoder, blocks, tmp_path)
    moved = sum(((alone[n] - before[n]) ** 2).sum() for n in alone)
    assert apart < 0.05 * moved


def _initial(encoder, blocks, folder):
    """The weights before training: a step this short moves none of them by more than rounding."""
    still = replace(CONFIG, optim=replace(CONFIG.optim, base_lr=1e-12))
    place = SimpleNamespace(data=blocks.data, threads=1, loaders=0, download=False)
    stage = run(still, seed=0, place=place, inputs=encoder, resume=None, should_stop=lambda: False)
    next(stage).save(folder)
    return kept(folder)["training"]["network"]


def test_workers__search_with_one_as_with_two(shared, encoder, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(found, "BATCH", found.BATCH)
    stage = start(encoder, blocks.data["blocks"], shared / "whole-0" / str(UPDATES))
    finish(stage, tmp_path / "alone")
    texts = [(f / "detections.json").read_text() for f in (tmp_path / "alone", shared / "whole-0")]
    assert texts[0] == texts[1]
    assert len(json.loads(texts[0])) > 0


if __name__ == "__main__":
    work(int(sys.argv[1]), *map(Path, sys.argv[2:]))
