"""What makes a worker's arithmetic repeatable, set before a stage computes anything."""

import os

import torch

from hpm.distributed import this_worker

__all__ = ["settle"]


def settle(threads: int) -> None:
    """Compute with so many threads and, on CUDA, with deterministic algorithms in full float32.

    An operation that has no deterministic algorithm raises, and does not only warn: where it may
    only warn, PyTorch computes the gradients of its fast attention in an order of chance.
    """
    torch.set_num_threads(threads)
    if this_worker().device.type == "cuda":
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True)
