"""A pass over a split whose batches are dealt to the workers, and whose results come in order.

Neither what is in a batch nor the order of the results depends on the number of workers, so what
is made of them is the same bits.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from hpm.data.sampling import Key, evaluation_keys, load
from hpm.distributed import all_gather, this_worker

__all__ = ["deal"]

Batch = TypeVar("Batch")
Rows: TypeAlias = tuple[Tensor, ...]


def deal(
    views: Callable[[Key], Batch],
    compute: Callable[[Batch], Rows],
    *,
    nothing: Rows,
    images: int,
    batch_size: int,
    done: int,
    loaders: int,
) -> Iterator[Rows]:
    """What `compute` makes of each batch of a split of so many images, after the first `done`.

    Its tensors may have any number of rows; those of `nothing` have none, and else the same shapes
    and types. They come on the CPU.

    Raises:
        DataError: (while iterating) an image is unreadable.
    """
    worker = this_worker()
    keys = evaluation_keys(
        images,
        batch_size=batch_size,
        rank=worker.rank,
        world=worker.world,
        first=done * batch_size,
    )
    batches = load(views, keys, loaders=loaders)
    left = -(-images // batch_size) - done
    for _ in range(-(-left // worker.world)):
        # In the last round a worker may have no batch left: its peers still wait for it.
        batch = next(batches, None)
        yield from _gather(nothing if batch is None else compute(batch), there=batch is not None)


def _gather(made: Rows, *, there: bool) -> Iterator[Rows]:
    """What each worker made, in the order of their ranks; of one that had no batch, nothing."""
    device = this_worker().device
    counts = torch.tensor([[len(part) for part in made]] * there, dtype=torch.int64)
    counts = all_gather(counts.view(-1, len(made)).to(device)).cpu()
    parts = [
        torch.split(all_gather(part.to(device)).cpu(), of.tolist())
        for part, of in zip(made, counts.T, strict=True)
    ]
    return zip(*parts, strict=True)
