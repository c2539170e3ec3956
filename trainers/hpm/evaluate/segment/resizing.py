"""Maps of values brought to another size by products with fixed matrices.

What `interpolate` (bilinear, corners not aligned) and `adaptive_avg_pool2d` compute, but with a
gradient that CUDA sums in a fixed order. Letters: B images, C channels, H, W height and width,
S, T source and target length.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["halve", "pool", "resize"]


def resize(values_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation to [B, C, height, width]."""
    if values_BCHW.shape[2:] == (height, width):
        return values_BCHW
    rows, columns = values_BCHW.shape[2:]
    return _apply(values_BCHW, _bilinear(rows, height), _bilinear(columns, width))


def pool(values_BCHW: Tensor, size: int) -> Tensor:
    """Means [B, C, size, size] over a grid of cells, which overlap where sizes do not divide."""
    rows, columns = values_BCHW.shape[2:]
    return _apply(values_BCHW, _cells(rows, size), _cells(columns, size))


def halve(values_BCHW: Tensor) -> Tensor:
    """The largest value of each 2 x 2 square; a last odd row or column is a square of its own."""
    rows, columns = values_BCHW.shape[2:]
    right, below = columns % 2, rows % 2
    padded = torch.nn.functional.pad(values_BCHW, (0, right, 0, below), value=float("-inf"))
    squares = padded.reshape(*padded.shape[:2], (rows + below) // 2, 2, (columns + right) // 2, 2)
    return squares.amax(dim=(3, 5))


def _apply(values_BCHW: Tensor, down: NDArray[np.float32], across: NDArray[np.float32]) -> Tensor:
    down_TS, across_TS = (
        torch.from_numpy(matrix).to(values_BCHW.device, values_BCHW.dtype)
        for matrix in (down, across)
    )
    return down_TS @ (values_BCHW @ across_TS.T)


@lru_cache
def _bilinear(source: int, target: int) -> NDArray[np.float32]:
    """[T, S]: each target's place between two sources, as PyTorch computes it."""
    at = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    low = at.astype(np.int64)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] = 1 - (at - low)
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += (at - low).astype(np.float32)
    return matrix


@lru_cache
def _cells(source: int, target: int) -> NDArray[np.float32]:
    """[T, S]: the mean over each cell, from its floor to its ceiling."""
    number, at = np.arange(target)[:, None], np.arange(source)
    within = (at >= number * source // target) & (at < -(-(number + 1) * source // target))
    shares: NDArray[np.float32] = within / within.sum(axis=1, keepdims=True, dtype=np.float32)
    return shares
