"""Which images are in which batch, and batches loaded by whoever is free.

A batch's members follow from (seed, step) alone: the number of loader processes, of workers, or the
step that a run starts from changes nothing. A loader process is handed whole batches, by key, and
has no random state.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hpm.data.errors import DataError
from hpm.data.serving import steps_per_epoch
from hpm.randomness import Purpose, generator

__all__ = [
    "Indices",
    "Key",
    "Shares",
    "epoch_order",
    "evaluation_keys",
    "load",
    "training_keys",
]

Indices: TypeAlias = NDArray[np.int64]
T = TypeVar("T")


class Key(NamedTuple):
    """All that determines a batch, given the run; an evaluation is all of epoch 0."""

    step: int
    epoch: int
    indices: Indices


class Shares(NamedTuple):
    """How the images of an optimizer step are dealt: in `parts` passes, to `world` workers."""

    batch_size: int
    """Images of a step, of all workers together."""
    parts: int = 1
    rank: int = 0
    world: int = 1


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Indices:
    """The order of all images in one epoch."""
    return generator(Purpose.ORDER, seed=seed, epoch=epoch).permutation(num_images)


def training_keys(num_images: int, steps: range, *, seed: int, shares: Shares) -> Iterator[Key]:
    """Batches of the optimizer steps (from 0, counted over all epochs), a part after the other.

    Raises:
        DataError: (while iterating) there are fewer images than one batch takes.
    """
    size, parts, rank, world = shares
    assert size % (parts * world) == 0, shares
    per_epoch = steps_per_epoch(num_images, size)
    current, order = -1, np.empty(0, dtype=np.int64)
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != current:
            current, order = epoch, epoch_order(num_images, seed=seed, epoch=epoch)
        batch = order[within * size : (within + 1) * size]
        for part in batch.reshape(parts, world, -1):
            yield Key(step, epoch, part[rank])


def evaluation_keys(
    num_images: int, *, batch_size: int, rank: int = 0, world: int = 1, first: int = 0
) -> Iterator[Key]:
    """Every image from `first` on once, in index order, whole batches dealt to the ranks in turn.

    So what is in a batch does not depend on the number of ranks; only the last one may be smaller.
    """
    for start in range(first + rank * batch_size, num_images, world * batch_size):
        end = min(start + batch_size, num_images)
        yield Key(start // batch_size, 0, np.arange(start, end, dtype=np.int64))


def load(assemble: Callable[[Key], T], keys: Iterator[Key], *, loaders: int) -> Iterator[T]:
    """What `assemble` makes of each key, in order, in so many processes (0: in this one).

    `assemble` must be picklable, and its result of tensors and tuples that can be pinned.

    Raises:
        DataError: (while iterating) `assemble` raised it.
    """
    loader = DataLoader(
        _Assembled(assemble),
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


class _Assembled(Dataset[T | DataError]):
    """An error sent as a value leaves its process unchanged."""

    def __init__(self, assemble: Callable[[Key], T]) -> None:
        self.assemble = assemble

    def __getitem__(self, key: Key) -> T | DataError:
        try:
            return self.assemble(key)
        except DataError as error:
            return error
