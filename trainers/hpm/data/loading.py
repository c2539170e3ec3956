"""Batches in a fixed order, whoever loads them.

An image's view and mask noise depend on (seed, epoch, index of the image) alone, and a batch's
members on (seed, step): the number of loader processes, of workers, or the step that a run starts
from changes nothing. A loader process is handed whole batches, by key, and has no random state.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpm.config import Data
from hpm.data.errors import DataError
from hpm.data.source import Source
from hpm.data.views import Pixels, evaluation_view, normalize, training_view
from hpm.randomness import Purpose, generator

__all__ = ["Batch", "epoch_order", "evaluation_batches", "steps_per_epoch", "training_batches"]

Indices: TypeAlias = NDArray[np.int64]


class Batch(NamedTuple):
    """Images of one forward pass; B images of side S, N patches each."""

    images: Tensor
    """[B, 3, S, S] float32, normalised."""
    labels: Tensor
    """[B] int64."""
    indices: Tensor
    """[B] int64, positions in the source."""
    noise: Tensor
    """[B, N] float32 in [0, 1), one draw a patch; N = 0 where no masks are drawn."""


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Indices:
    """The order of all images in one epoch."""
    return generator(Purpose.ORDER, seed=seed, epoch=epoch).permutation(num_images)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; what is left over waits for another epoch's order.

    Raises:
        DataError: there are fewer images than one batch takes.
    """
    if num_images < batch_size:
        raise DataError(
            f"A batch must fit into the training set, got batch_size={batch_size} for "
            f"{num_images} images; make the batch smaller."
        )
    return num_images // batch_size


def training_batches(
    source: Source,
    data: Data,
    *,
    seed: int,
    batch_size: int,
    parts: int = 1,
    rank: int = 0,
    world: int = 1,
    first_step: int,
    last_step: int,
    num_patches: int = 0,
    loaders: int = 0,
) -> Iterator[Batch]:
    """Augmented batches of the optimizer steps [first_step, last_step), counted over all epochs.

    `batch_size` is global. A step gives `parts` batches, one after the other, and of each of them
    this rank's share: batch_size / (parts * world) images. `num_patches` is N of the mask noise.

    Raises:
        DataError: the set is smaller than one batch, or (while iterating) an image is unreadable.
    """
    assert batch_size % (parts * world) == 0, (batch_size, parts, world)
    steps_per_epoch(len(source), batch_size)
    views = _TrainingViews(source, data, seed, num_patches)
    steps = range(first_step, last_step)
    keys = _training_keys(len(source), steps, seed=seed, shares=(batch_size, parts, world, rank))
    return _load(views, keys, loaders)


def evaluation_batches(
    source: Source,
    image_size: int,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    loaders: int = 0,
) -> Iterator[Batch]:
    """Every image once, in index order, in the evaluation view, without mask noise.

    Whole batches are dealt to the ranks in turn, so that what is in a batch does not depend on the
    number of ranks; only the last one may be smaller.

    Raises:
        DataError: (while iterating) an image is unreadable.
    """
    starts = range(rank * batch_size, len(source), world * batch_size)
    keys = (
        _Key(0, np.arange(start, min(start + batch_size, len(source)), dtype=np.int64))
        for start in starts
    )
    return _load(_EvaluationViews(source, image_size), keys, loaders)


class _Key(NamedTuple):
    """All that determines a batch, given the run."""

    epoch: int
    indices: Indices


def _training_keys(
    num_images: int, steps: range, *, seed: int, shares: tuple[int, int, int, int]
) -> Iterator[_Key]:
    batch_size, parts, world, rank = shares
    per_epoch = steps_per_epoch(num_images, batch_size)
    current, order = -1, np.empty(0, dtype=np.int64)
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != current:
            current, order = epoch, epoch_order(num_images, seed=seed, epoch=epoch)
        batch = order[within * batch_size : (within + 1) * batch_size]
        for part in batch.reshape(parts, world, -1):
            yield _Key(epoch, part[rank])


@dataclass(frozen=True, slots=True)
class _TrainingViews(Dataset[Batch | DataError]):
    source: Source
    data: Data
    seed: int
    num_patches: int

    def __getitem__(self, key: _Key) -> Batch | DataError:
        noise = [
            self._stream(Purpose.MASK, key.epoch, index).random(self.num_patches, dtype=np.float32)
            for index in key.indices
        ]
        return _assemble(
            self.source,
            key.indices,
            lambda index, image: training_view(
                image, self.data, self._stream(Purpose.VIEW, key.epoch, index)
            ),
            noise=np.stack(noise),
        )

    def _stream(self, purpose: Purpose, epoch: int, index: int) -> np.random.Generator:
        return generator(purpose, seed=self.seed, epoch=epoch, index=index)


@dataclass(frozen=True, slots=True)
class _EvaluationViews(Dataset[Batch | DataError]):
    source: Source
    image_size: int

    def __getitem__(self, key: _Key) -> Batch | DataError:
        return _assemble(
            self.source,
            key.indices,
            lambda _, image: evaluation_view(image, self.image_size),
            noise=np.empty((len(key.indices), 0), dtype=np.float32),
        )


def _assemble(
    source: Source,
    indices: Indices,
    view: Callable[[int, Image.Image], Pixels],
    *,
    noise: NDArray[np.float32],
) -> Batch | DataError:
    """The batch, or why there is none: an error sent as a value leaves its process unchanged."""
    try:
        pixels = np.stack([view(index, source.image(index)) for index in indices.tolist()])
    except DataError as error:
        return error
    labels = torch.tensor([source.label(index) for index in indices.tolist()])
    return Batch(normalize(pixels), labels, torch.from_numpy(indices), torch.from_numpy(noise))


def _load(views: Dataset[Batch | DataError], keys: Iterator[_Key], loaders: int) -> Iterator[Batch]:
    loader = DataLoader(
        views,
        batch_size=None,
        sampler=keys,
        num_workers=loaders,
        pin_memory=torch.cuda.is_available(),
        # Its own, or starting to load would move PyTorch's global generator.
        generator=torch.Generator(),
    )
    for loaded in loader:
        if isinstance(loaded, DataError):
            raise loaded
        yield loaded
