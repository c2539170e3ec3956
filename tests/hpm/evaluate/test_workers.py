"""Two processes run this file as a script; what they leave is compared with one worker's."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed

from hpm.evaluate import knn, linear
from hpm.evaluate.config import Knn, Linear

KNN = Knn(k=(5, 20), report_k=5)


def probe(augment):
    return Linear(epochs=2, warmup_epochs=1.0, base_lr=0.2, batch_size=64, augment=augment)


def finish(stage, folder, save_at=None):
    """Run to the end; keep the state of the last step (or `save_at`), the metrics, the guesses."""
    folder.mkdir()
    while True:
        try:
            progress = next(stage)
        except StopIteration as end:
            (folder / "metrics.json").write_text(json.dumps(end.value.metrics))
            end.value.export(folder)
            return
        if progress.step == (save_at or progress.total):
            progress.save(folder)


def work(rank, export, root, target):
    distributed.init_process_group(
        "gloo", init_method=f"file://{target}/meeting", rank=rank, world_size=2
    )
    place = SimpleNamespace(data={"colours": root}, threads=1, loaders=0, download=False)
    given = {"seed": 0, "place": place, "inputs": export, "should_stop": lambda: False}
    for augment in (False, True):
        stage = linear.run(probe(augment), resume=None, **given)
        finish(stage, target / f"{augment}-{rank}")
    part, rest = target / f"part-{rank}", target / f"rest-{rank}"
    finish(knn.run(KNN, resume=None, **given), part, save_at=1)
    finish(knn.run(KNN, resume=part, **given), rest)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(encoder, place, tmp_path_factory):
    """The folder of all that two workers leave, by name and rank."""
    folder = tmp_path_factory.mktemp("shared")
    given = [str(path) for path in (encoder, place.data["colours"], folder)]
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), *given]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    return folder


@pytest.fixture
def alone(drain, stage, encoder, tmp_path):
    """What one worker holds at the end."""

    def state(augment):
        drain(stage(linear.run, probe(augment), encoder)).steps[-1].save(tmp_path)
        return kept(tmp_path)

    return state


def kept(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def answer(folder):
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        guesses = arrays["guesses"].tolist()
    return json.loads((folder / "metrics.json").read_text()), guesses


@pytest.mark.parametrize("rank", [0, 1])
def test_workers__extract_and_probe_as_one_does_bit_for_bit(shared, alone, rank):
    expected = alone(augment=False)
    torch.testing.assert_close(kept(shared / f"False-{rank}"), expected, rtol=0, atol=0)


def test_workers__share_the_images_of_an_augmented_step(shared, alone):
    first, second = kept(shared / "True-0"), kept(shared / "True-1")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # Half a batch each: the encoder's last bits differ, its images do not.
    torch.testing.assert_close(first, alone(augment=True), rtol=1e-3, atol=1e-4)


def test_workers__vote_as_one_does_wherever_they_resume(shared, stage, encoder, tmp_path):
    finish(stage(knn.run, KNN, encoder), tmp_path / "alone")
    finish(stage(knn.run, KNN, encoder, resume=shared / "part-0"), tmp_path / "resumed")
    expected = answer(tmp_path / "alone")
    for name in ("part-0", "part-1", "rest-0", "rest-1"):
        assert answer(shared / name) == expected, name
    assert answer(tmp_path / "resumed") == expected
    # All features are the same bits, whoever extracted them.
    states = [kept(folder) for folder in (tmp_path / "alone", shared / "rest-1")]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    torch.testing.assert_close(kept(tmp_path / "resumed"), states[0], rtol=0, atol=0)


if __name__ == "__main__":
    work(int(sys.argv[1]), *map(Path, sys.argv[2:]))
