"""What a network is given in fine-tuning: crops, distorted and mixed, targets, and coins.

An image's view depends on (seed, epoch, index of the image) alone, how a step's images are mixed on
(seed, step). Letters: B images of a part, S their side, C classes, P branches with drop path.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from hpm.config import Data
from hpm.data.sampling import Key
from hpm.data.source import Source
from hpm.data.views import training_view
from hpm.evaluate.augment import Distortion
from hpm.evaluate.finetune_config import Augment
from hpm.evaluate.mixing import draw_mixing, mix, smooth
from hpm.randomness import Purpose, generator

__all__ = ["Part", "Views"]


class Part(NamedTuple):
    """What the network is given of one pass."""

    images: Tensor
    """[B, 3, S, S] float32, normalised, distorted and mixed."""
    targets: Tensor
    """[B, C] float32, each of sum 1."""
    coins: Tensor
    """[B, P] float32 in [0, 1)."""
    indices: Tensor
    """[B] int64, positions in the source."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Makes the part of a key. An image alone depends on (seed, epoch, its index), not on others.

    `branches` is the number of coins that an image needs.
    """

    source: Source
    data: Data
    augment: Augment
    distortion: Distortion
    branches: int
    seed: int

    def __call__(self, key: Key) -> Part:
        """The part of a key.

        Raises:
            DataError: an image is unreadable.
        """
        indices = key.indices.tolist()
        images_BCHW = torch.stack([self._image(key.epoch, index) for index in indices])
        labels_B = torch.tensor([self.source.label(index) for index in indices])
        targets_BC = smooth(
            labels_B, classes=len(self.source.classes), smoothing=self.augment.smoothing
        )
        if self.augment.mixes:
            rng = generator(Purpose.MIX, seed=self.seed, index=key.step)
            mixing = draw_mixing(self.augment, self.data.image_size, rng)
            images_BCHW, targets_BC = mix(images_BCHW, targets_BC, mixing)
        coins = [self._stream(Purpose.DROP, key.epoch, index) for index in indices]
        coins_BP = np.stack([rng.random(self.branches, dtype=np.float32) for rng in coins])
        return Part(
            images_BCHW, targets_BC, torch.from_numpy(coins_BP), torch.from_numpy(key.indices)
        )

    def _image(self, epoch: int, index: int) -> Tensor:
        drawn = self._stream(Purpose.VIEW, epoch, index)
        view = training_view(self.source.image(index), self.data, drawn)
        return self.distortion(view, self._stream(Purpose.AUGMENT, epoch, index))

    def _stream(self, purpose: Purpose, epoch: int, index: int) -> np.random.Generator:
        return generator(purpose, seed=self.seed, epoch=epoch, index=index)
