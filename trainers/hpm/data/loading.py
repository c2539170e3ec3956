"""Batches of views in a fixed order, whoever loads them.

An image's view depends on (seed, epoch, index of the image) alone, and so does its mask noise, but
for one case: blocks that are drawn for a ratio that moves with every step depend on the step, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpm.config import Data
from hpm.data.sampling import (
    Indices,
    Key,
    Shares,
    load,
    training_keys,
)
from hpm.data.serving import steps_per_epoch
from hpm.data.source import Source
from hpm.data.views import Pixels, crop_view, draw_crop, evaluation_view, normalize
from hpm.randomness import Purpose, generator

__all__ = ["Batch", "Draw", "EvaluationViews", "View", "training_batches"]


View: TypeAlias = tuple[Pixels, NDArray[np.floating[Any]]]
"""What is shown of an image, and the crop that it is."""


class Batch(NamedTuple):
    """Images of one forward pass; B images of side S, U draws for each."""

    images: Tensor
    """[B, 3, S, S] float32, normalised."""
    labels: Tensor
    """[B] int64."""
    indices: Tensor
    """[B] int64, positions in the source."""
    noise: Tensor
    """[B, U] float32, the draws for each image's mask; U = 0 where no masks are drawn."""
    crops: Tensor
    """[B, 5] float32: what a view shows of its image. Left, top, right and bottom as shares of
    width and height, and 1 where it is mirrored; in an evaluation all 0."""


class Draw(Protocol):
    """What is drawn for the mask of one image at a step."""

    def __call__(self, rng: np.random.Generator, step: int) -> NDArray[np.float32]:
        """[U] float32, all finite."""
        ...


def training_batches(
    source: Source,
    data: Data,
    steps: range,
    *,
    seed: int,
    shares: Shares,
    draw: Draw | None = None,
    loaders: int = 0,
) -> Iterator[Batch]:
    """Augmented batches of these optimizer steps, counted over all epochs.

    A step gives `shares.parts` batches, one after the other, and of each of them this rank's share.

    Raises:
        DataError: the set is smaller than a batch, or (while iterating) an image is unreadable.
    """
    steps_per_epoch(len(source), shares.batch_size)
    keys = training_keys(len(source), steps, seed=seed, shares=shares)
    return load(_TrainingViews(source, data, seed, draw), keys, loaders=loaders)


@dataclass(frozen=True, slots=True)
class _TrainingViews:
    source: Source
    data: Data
    seed: int
    draw: Draw | None

    def __call__(self, key: Key) -> Batch:
        noise = np.empty((len(key.indices), 0), dtype=np.float32)
        if self.draw is not None:
            streams = (self._stream(Purpose.MASK, key.epoch, i) for i in key.indices)
            noise = np.stack([self.draw(stream, key.step) for stream in streams])

        def view(index: int, image: Image.Image) -> View:
            crop = draw_crop(image.size, self.data, self._stream(Purpose.VIEW, key.epoch, index))
            width, height = image.size
            shares = np.array(crop, np.float32) / (width, height, width, height, 1)
            return crop_view(image, crop, self.data.image_size), shares

        return _assemble(self.source, key.indices, view, noise=noise)

    def _stream(self, purpose: Purpose, epoch: int, index: int) -> np.random.Generator:
        return generator(purpose, seed=self.seed, epoch=epoch, index=index)


@dataclass(frozen=True, slots=True)
class EvaluationViews:
    """Makes batches of whole images by key, without noise."""

    source: Source
    image_size: int

    def __call__(self, key: Key) -> Batch:
        """The batch. Raises DataError where an image is unreadable."""
        noise = np.empty((len(key.indices), 0), dtype=np.float32)
        return _assemble(
            self.source,
            key.indices,
            lambda _, image: (evaluation_view(image, self.image_size), np.zeros(5)),
            noise=noise,
        )


def _assemble(
    source: Source,
    indices: Indices,
    view: Callable[[int, Image.Image], View],
    *,
    noise: NDArray[np.float32],
) -> Batch:
    views = [view(index, source.image(index)) for index in indices.tolist()]
    return Batch(
        images=normalize(np.stack([pixels for pixels, _ in views])),
        labels=torch.tensor([source.label(index) for index in indices.tolist()]),
        indices=torch.from_numpy(indices),
        noise=torch.from_numpy(noise),
        crops=torch.from_numpy(np.stack([crop for _, crop in views]).astype(np.float32)),
    )
