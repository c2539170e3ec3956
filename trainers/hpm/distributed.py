"""Several workers as one: the only module that knows torch.distributed.

Without a process group every function here is the identity of one worker, so the callers have
one path. Who joins the workers, and how, is the launcher's affair.
"""

import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Worker", "all_gather", "all_mean", "average_gradients", "this_worker"]


class Worker(NamedTuple):
    """This process among its peers, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device


def this_worker() -> Worker:
    """Rank 0 of 1 where no process group exists.

    CUDA device LOCAL_RANK where there is CUDA, but the CPU in a group that is not NCCL's.
    """
    joined = dist.is_initialized()
    device = torch.device("cpu")
    if torch.cuda.is_available() and (not joined or dist.get_backend() == dist.Backend.NCCL):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if not joined:
        return Worker(0, 1, device)
    return Worker(dist.get_rank(), dist.get_world_size(), device)


def average_gradients(model: nn.Module) -> None:
    """Replace the model's gradients by their means over the workers.

    All of them in one sum, in the order of the parameters, after the backward pass.
    DistributedDataParallel would overlap the two, but it groups the gradients anew after its first
    pass: with three workers or more, a resumed run would then sum in another order at first.
    """
    if this_worker().world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    mean = all_mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(mean, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def all_mean(values: Tensor) -> Tensor:
    """Mean over the workers of a tensor that has the same shape at each."""
    if this_worker().world == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / this_worker().world


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all workers, in the order of their ranks; their numbers of rows may differ."""
    worker = this_worker()
    if worker.world == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(worker.world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
