from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpm.config import Data, Encoder
from hpm.evaluate.config import Pixels, Random
from hpm.evaluate.references import run_pixels, run_random
from hpm.progress import Progress, Result, StageRun

SIDE, CLASSES, TRAIN, VAL = 16, 6, 300, 142


@dataclass(frozen=True)
class Here:
    data: Mapping[str, Path]
    threads: int = 1
    loaders: int = 0
    download: bool = False


@dataclass
class Finished:
    steps: list[Progress]
    result: Result | None
    traces: list[Mapping[str, str]]
    """Of every step, taken before the next."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """Noisy images, each class with a colour of its own."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    colours = np.array(
        [[80 if (label + 1) >> bit & 1 else 170 for bit in range(3)] for label in range(CLASSES)]
    )
    for split, count in (("train", TRAIN), ("val", VAL)):
        for index in range(count):
            label = index % CLASSES
            pixels = colours[label] + rng.integers(-80, 80, (SIDE, SIDE, 3))
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:04}.png")
    return Here({"colours": root})


@pytest.fixture(scope="session")
def settings() -> Random:
    return Random(
        data=Data(name="colours", image_size=SIDE),
        encoder=Encoder(patch_size=8, width=16, depth=1, heads=2, mlp_ratio=2.0),
    )


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, place: Here, settings: Random) -> Path:
    """The export of an encoder as initialised from seed 0."""
    return _export(run_random, settings, place, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory, place: Here, settings: Random) -> Path:
    """The export of the encoder that is none."""
    folder = tmp_path_factory.mktemp("pixels")
    return _export(run_pixels, Pixels(data=settings.data), place, folder)


def _export(run: Any, config: Any, place: Here, folder: Path) -> Path:
    done = _drain(
        run(config, seed=0, place=place, inputs=None, resume=None, should_stop=lambda: False)
    )
    assert done.result is not None
    done.result.export(folder)
    return folder


def _drain(stage: StageRun, save_at: int | None = None, folder: Path | None = None) -> Finished:
    steps, traces = [], []
    while True:
        try:
            progress = next(stage)
        except StopIteration as end:
            return Finished(steps, end.value, traces)
        steps.append(progress)
        traces.append(progress.trace())
        if progress.step == save_at:
            assert folder is not None
            progress.save(folder)


@pytest.fixture
def drain() -> Callable[..., Finished]:
    """Run a stage to its end; `save_at` saves into `folder` after that step."""
    return _drain


@pytest.fixture
def stage(place: Here) -> Callable[..., StageRun]:
    """Start a stage here, from seed 0 unless told otherwise."""

    def start(
        run: Callable[..., StageRun],
        config: object,
        inputs: Path | None,
        *,
        resume: Path | None = None,
        seed: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> StageRun:
        return partial(run, config, seed=seed, place=place)(
            inputs=inputs, resume=resume, should_stop=should_stop
        )

    return start
