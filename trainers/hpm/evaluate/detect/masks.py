"""Masks between an image and the small grid over a box that a detector predicts them on.

Letters: O objects, K boxes, M side of the grid, H and W of the image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["crop_masks", "paste_mask"]


def crop_masks(masks_OHW: Tensor, boxes_K4: Tensor, owners_K: Tensor, side: int) -> Tensor:
    """Each box's grid [K, M, M] over its object's mask: the share of a cell that the mask covers.

    Boxes lie in the image: left, top, right, bottom in pixels. A share is exact, from sums of whole
    numbers, since a sum of fractions has no fixed order on CUDA.
    """
    sums = torch.nn.functional.pad(masks_OHW.int(), (1, 0, 1, 0)).cumsum(1).cumsum(2)
    edges = torch.linspace(0, 1, side + 1, device=boxes_K4.device, dtype=torch.float64)
    ends_K4 = boxes_K4.double()
    spans_K2 = (ends_K4[:, 2:] - ends_K4[:, :2]).clamp(min=1e-6)
    x_KM = ends_K4[:, 0:1] + spans_K2[:, 0:1] * edges
    y_KM = ends_K4[:, 1:2] + spans_K2[:, 1:2] * edges
    below = _covered(sums, owners_K, y_KM, x_KM).diff(dim=1).diff(dim=2)
    cells_K = spans_K2.prod(dim=1) / side**2
    return (below / cells_K[:, None, None]).clamp(0, 1).to(boxes_K4.dtype)


def _covered(sums: Tensor, owners_K: Tensor, y_KM: Tensor, x_KM: Tensor) -> Tensor:
    """Area of the mask left of and above each point [K, M, M]; between pixels it is bilinear."""
    height, width = sums.shape[1] - 1, sums.shape[2] - 1
    y_KM, x_KM = y_KM.clamp(0, height), x_KM.clamp(0, width)
    top, left = y_KM.long().clamp(max=height - 1), x_KM.long().clamp(max=width - 1)
    down, right = (y_KM - top)[:, :, None], (x_KM - left)[:, None, :]
    owner, top, left = owners_K[:, None, None], top[:, :, None], left[:, None, :]
    upper = sums[owner, top, left] * (1 - right) + sums[owner, top, left + 1] * right
    lower = sums[owner, top + 1, left] * (1 - right) + sums[owner, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def paste_mask(
    grid_MM: NDArray[np.float64], box: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """The mask [H, W] of an object in `box`: pixels where the grid, interpolated, is at least 0.5.

    `size` is the image's width and height; `box` is left, top, right, bottom in its pixels.
    """
    mask = np.zeros(size[::-1], dtype=np.bool_)
    columns, rows = (
        np.arange(max(0, int(np.ceil(low - 0.5))), min(length, int(np.ceil(high - 0.5))))
        for low, high, length in zip(box[:2], box[2:], size, strict=True)
    )
    across = _weights(columns, box[0], box[2], len(grid_MM))
    down = _weights(rows, box[1], box[3], len(grid_MM))
    mask[rows[:, None], columns] = down @ grid_MM @ across.T >= 0.5
    return mask


def _weights(pixels: NDArray[np.int64], low: float, high: float, side: int) -> NDArray[np.float64]:
    """What each cell of the grid weighs at each pixel's centre."""
    at = np.clip((pixels + 0.5 - low) / max(high - low, 1e-6) * side - 0.5, 0, side - 1)
    weights: NDArray[np.float64] = np.clip(1 - np.abs(at[:, None] - np.arange(side)), 0, 1)
    return weights
