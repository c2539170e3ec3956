"""Batches for a detector: views, objects and draws, which depend on (seed, epoch, image) alone.

Letters: B images of side S, O objects of all of them, P branches of the encoder.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpm.data.jitter import fitted_view, jittered_view
from hpm.data.objects import ObjectImages, tight_boxes
from hpm.data.sampling import Key
from hpm.data.views import normalize
from hpm.evaluate.detect.config import Detect
from hpm.evaluate.detect.network import Target
from hpm.randomness import Purpose, generator

__all__ = ["FittedBatch", "FittedViews", "JitteredBatch", "JitteredViews"]


class JitteredBatch(NamedTuple):
    """Images to learn from; what belongs to objects stands in the order of their images."""

    images: Tensor
    """[B, 3, S, S] float32, normalised."""
    counts: Tensor
    """[B] int64, objects of each image."""
    boxes: Tensor
    """[O, 4] float32: left, top, right, bottom in pixels."""
    labels: Tensor
    """[O] int64, from 1."""
    masks: Tensor
    """[O, S, S] bool."""
    coins: Tensor
    """[B, P] float32 in [0, 1), for the encoder's drop paths."""
    seeds: Tensor
    """[B, 2] int64, for the choice of anchors and regions."""
    indices: Tensor
    """[B] int64, positions in the source."""

    def targets(self, device: torch.device) -> list[Target]:
        """The objects of each image."""
        counts = self.counts.tolist()
        held = (self.boxes, self.labels, self.masks)
        parts = [torch.split(tensor.to(device), counts) for tensor in held]
        return [Target(*objects) for objects in zip(*parts, strict=True)]


class FittedBatch(NamedTuple):
    """Whole images, to find objects in."""

    images: Tensor
    """[B, 3, S, S] float32, normalised."""
    shown: Tensor
    """[B, 2] int64, width and height that the image covers in its view."""
    sizes: Tensor
    """[B, 2] int64, width and height of the image itself."""
    indices: Tensor
    """[B] int64, positions in the source."""


@dataclass(frozen=True, slots=True)
class JitteredViews:
    """Makes training batches; `seed` is the evaluation's own."""

    source: ObjectImages
    config: Detect
    seed: int
    num_paths: int

    def __call__(self, key: Key) -> JitteredBatch:
        """Raises DataError, naming the image, where one cannot be read."""
        pixels, boxes, labels, masks = [], [], [], []
        for index in key.indices.tolist():
            labels_O, masks_OHW = self.source.objects(index)
            shown = jittered_view(
                self.source.image(index),
                masks_OHW,
                image_size=self.config.image_size,
                scales=(self.config.min_scale, self.config.max_scale),
                flip=self.config.flip,
                rng=self._stream(Purpose.VIEW, key.epoch, index),
            )
            seen = shown.masks.any(axis=(1, 2))
            pixels.append(shown.pixels)
            labels.append(labels_O[seen] + 1)
            masks.append(shown.masks[seen])
            boxes.append(tight_boxes(masks[-1]))
        samples = [self._stream(Purpose.SAMPLE, key.epoch, i) for i in key.indices.tolist()]
        drops = [self._stream(Purpose.DROP, key.epoch, i) for i in key.indices.tolist()]
        coins = np.stack([rng.random(self.num_paths, dtype=np.float32) for rng in drops])
        return JitteredBatch(
            images=normalize(np.stack(pixels)),
            counts=torch.tensor([len(part) for part in labels]),
            boxes=torch.from_numpy(np.concatenate(boxes)),
            labels=torch.from_numpy(np.concatenate(labels)),
            masks=torch.from_numpy(np.concatenate(masks)),
            coins=torch.from_numpy(coins),
            seeds=torch.from_numpy(np.stack([rng.integers(2**63, size=2) for rng in samples])),
            indices=torch.from_numpy(key.indices),
        )

    def _stream(self, purpose: Purpose, epoch: int, index: int) -> np.random.Generator:
        return generator(purpose, seed=self.seed, epoch=epoch, index=index)


@dataclass(frozen=True, slots=True)
class FittedViews:
    """Makes validation batches."""

    source: ObjectImages
    image_size: int

    def __call__(self, key: Key) -> FittedBatch:
        """Raises DataError, naming the image, where one cannot be read."""
        images = [self.source.image(index) for index in key.indices.tolist()]
        shown = [fitted_view(image, image_size=self.image_size) for image in images]
        return FittedBatch(
            images=normalize(np.stack([one.pixels for one in shown])),
            shown=torch.tensor([one.size for one in shown]),
            sizes=torch.tensor([image.size for image in images]),
            indices=torch.from_numpy(key.indices),
        )
