"""Several workers as one: the only module that knows torch.distributed.

Without a process group every function here is the identity of one worker, so the callers have
one path. Workers that a launcher has joined already are used as they are.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Worker", "all_gather", "all_mean", "joined", "parallel", "this_worker", "unsynced"]


class Worker(NamedTuple):
    """This process among its peers, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device


def this_worker() -> Worker:
    """Rank 0 of 1 where no process group exists; CUDA device LOCAL_RANK where there is CUDA."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        return Worker(0, 1, device)
    return Worker(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def joined() -> Iterator[Worker]:
    """Join the peers that torchrun's environment names (none: alone), and leave them at the end."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield this_worker()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(this_worker().device)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield this_worker()
    finally:
        dist.destroy_process_group()


def parallel(model: nn.Module, worker: Worker) -> nn.Module:
    """The model with gradients averaged over the workers; the model itself where there is one."""
    if worker.world == 1:
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def unsynced(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around one backward pass of several: gradients are averaged in the last one only."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    held: AbstractContextManager[None] = model.no_sync()
    return held


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
