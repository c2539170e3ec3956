import subprocess
import sys

import pytest
import torch

from hpm.evaluate.config import Linear
from hpm.evaluate.linear import run

SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import distributed
from hpm.evaluate.config import Linear
from hpm.evaluate.linear import run

rank, (export, root, target) = int(sys.argv[1]), map(Path, sys.argv[2:])
distributed.init_process_group(
    "gloo", init_method=f"file://{target}/meeting", rank=rank, world_size=2
)
place = SimpleNamespace(data={"colours": root}, threads=1, loaders=0)
for augment in (False, True):
    config = Linear(epochs=2, warmup_epochs=1.0, base_lr=0.2, batch_size=64, augment=augment)
    for progress in run(
        config, seed=0, place=place, inputs=export, resume=None, should_stop=lambda: False
    ):
        pass
    folder = target / f"{augment}-{rank}"
    folder.mkdir()
    progress.save(folder)
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def shared(encoder, place, tmp_path_factory):
    """What two workers hold at the end of a linear probe, by (augment, rank)."""
    folder = tmp_path_factory.mktemp("shared")
    given = [str(path) for path in (encoder, place.data["colours"], folder)]
    workers = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), *given]) for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    return {
        (augment, rank): torch.load(folder / f"{augment}-{rank}" / "state.pt", weights_only=True)
        for augment in (False, True)
        for rank in range(2)
    }


@pytest.fixture
def alone(drain, stage, encoder, tmp_path):
    """What one worker holds at the end."""

    def state(augment):
        config = Linear(epochs=2, warmup_epochs=1.0, base_lr=0.2, batch_size=64, augment=augment)
        drain(stage(run, config, encoder)).steps[-1].save(tmp_path)
        return torch.load(tmp_path / "state.pt", weights_only=True)

    return state


@pytest.mark.parametrize("rank", [0, 1])
def test_workers__extract_and_probe_as_one_does_bit_for_bit(shared, alone, rank):
    expected = alone(augment=False)
    torch.testing.assert_close(shared[False, rank], expected, rtol=0, atol=0)


def test_workers__share_the_images_of_an_augmented_step(shared, alone):
    first, second = shared[True, 0], shared[True, 1]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # Half a batch each: the encoder's last bits differ, its images do not.
    torch.testing.assert_close(first, alone(augment=True), rtol=1e-3, atol=1e-4)
