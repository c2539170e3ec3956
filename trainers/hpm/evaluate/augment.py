"""Distortions of training images by timm's own classes, with draws that are keyed all the same.

timm draws from the global generators of `random`, numpy and PyTorch. For one image they are seeded
from a keyed draw, and afterwards they are what they were.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from hpm.data.views import IMAGENET_MEAN, Pixels, normalize
from hpm.evaluate.finetune_config import Augment

__all__ = ["Distortion", "seeded"]

_MOST = 9.999
"""Largest magnitude. At timm's own, 10, an image is posterized to no bit, which Pillow refuses."""


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Global generators that are seeded by `rng` inside, and untouched outside.

    They are those of `random`, numpy and PyTorch (of the CPU).
    """
    # Not torch.manual_seed, which would seed the generators of CUDA too.
    ours = torch.default_generator
    before = random.getstate(), np.random.get_state(), ours.get_state()
    try:
        random.seed(int(rng.integers(2**63)))
        np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
        ours.manual_seed(int(rng.integers(2**63)))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        ours.set_state(before[2])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """RandAugment of a view, and noise in a rectangle of it once it is normalised."""

    colours_and_shapes: RandAugment | None
    erasing: RandomErasing | None

    @classmethod
    def of(cls, augment: Augment, image_size: int) -> Self:
        """The official one: two operations, each in half of the cases; erasing by pixels."""
        return cls(
            colours_and_shapes=_rand_augment(augment.rand_magnitude, image_size),
            erasing=_random_erasing(augment.erasing),
        )

    def __call__(self, view: Pixels, rng: np.random.Generator) -> Tensor:
        """[3, S, S] float32, normalised, of a view [S, S, 3]."""
        with seeded(rng):
            if self.colours_and_shapes is not None:
                view = np.asarray(self.colours_and_shapes(Image.fromarray(view)))
            image: Tensor = normalize(np.stack([view]))[0]
            return image if self.erasing is None else self.erasing(image)


def _rand_augment(magnitude: int, image_size: int) -> RandAugment | None:
    if magnitude == 0:
        return None
    # What timm's transforms for ImageNet give it: what is uncovered is of the mean colour.
    given = {
        "translate_const": int(0.45 * image_size),
        "img_mean": tuple(round(255 * mean) for mean in IMAGENET_MEAN),
        "interpolation": Image.Resampling.BICUBIC,
        "magnitude_max": _MOST,
    }
    augment: RandAugment = rand_augment_transform(f"rand-m{magnitude}-mstd0.5-inc1", given)
    return augment


def _random_erasing(share: float) -> RandomErasing | None:
    # timm leaves its arguments without types.
    build: Callable[..., RandomErasing] = RandomErasing
    return None if share == 0 else build(share, mode="pixel", device="cpu")
