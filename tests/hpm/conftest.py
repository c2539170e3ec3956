from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model

from hpm.config import Data, Decoder, Ema, Encoder, Optim, Pretrain, Watch


@dataclass(frozen=True)
class Here:
    """A place on this machine, as the platform would describe it."""

    data: dict[str, Path] = field(default_factory=dict)
    threads: int = 1
    loaders: int = 0
    download: bool = False


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A data set of 32 training images, in ImageNet's layout."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return Here(data={"tiny": root})


@pytest.fixture(scope="session")
def teachers(tiny_place: Here, tmp_path_factory: pytest.TempPathFactory) -> Here:
    """The same, and weights, drawn at random, of small models of timm."""
    folder, files = tmp_path_factory.mktemp("teachers"), dict(tiny_place.data)
    for name in ("vit_tiny_patch16_224", "coat_lite_tiny", "pit_ti_224"):
        files[name] = folder / f"{name}.pth"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(create_model(name).state_dict(), files[name])
    return replace(tiny_place, data=files)


@pytest.fixture
def tiny() -> Pretrain:
    """HPM at a size of milliseconds: 3 epochs of 4 steps, hard patches from the first epoch on."""
    return Pretrain(
        data=Data(name="tiny", image_size=16),
        encoder=Encoder(patch_size=4, width=16, depth=1, heads=2),
        decoder=Decoder(width=16, depth=1, heads=2),
        ema=Ema(start=0.9, end=0.99, ramp_epochs=3),
        optim=Optim(base_lr=0.03, batch_size=8, warmup_epochs=1),
        watch=Watch(times=0),
        epochs=3,
        precision="float32",
    )
