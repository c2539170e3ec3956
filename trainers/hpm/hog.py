"""Histograms of oriented gradients, as MaskFeat takes them for its target (Wei et al., CVPR 2022).

For each colour by itself: Sobel gradients, whose orientations (unsigned, 0 to 180 degrees from the
downward one) are counted by `bins`, weighted by magnitude and by a Gaussian over squares of two
cells; the histogram of a cell is then brought to unit length. Letters: B images, C channels, H W
height and width, K bins, N patches, P values of one patch.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from hpm.patches import patchify

__all__ = ["hog"]


def hog(images_BCHW: Tensor, patch_size: int, *, bins: int = 9, cell: int = 8) -> Tensor:
    """Histograms [B, N, P] of the cells of each patch; P = C * bins * (patch_size / cell)^2."""
    batch, channels, height, width = images_BCHW.shape
    down_BCHW, right_BCHW = _gradients(images_BCHW)
    magnitude = (down_BCHW.square() + right_BCHW.square()).sqrt() * _window(images_BCHW, 2 * cell)
    turned = torch.atan2(right_BCHW, down_BCHW) / math.pi * bins
    bin_BCHW = turned.floor().long().remainder(bins)
    votes = torch.zeros(batch, channels, bins, height, width, device=images_BCHW.device)
    votes.scatter_(2, bin_BCHW[:, :, None], magnitude[:, :, None])
    cells = functional.avg_pool2d(votes.flatten(1, 2), cell)
    cells = cells.reshape(batch, channels, bins, *cells.shape[2:])
    return patchify(functional.normalize(cells, dim=2).flatten(1, 2), patch_size // cell)


def _gradients(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's, downwards and to the right; at the rim the image is mirrored.

    Differences come first: there they are exactly 0, and no rounding decides on a direction.
    """
    padded = functional.pad(images_BCHW.float(), (1, 1, 1, 1), mode="reflect")
    down, right = padded[:, :, 2:] - padded[:, :, :-2], padded[..., 2:] - padded[..., :-2]
    down_BCHW = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    right_BCHW = right[:, :, :-2] + 2 * right[:, :, 1:-1] + right[:, :, 2:]
    return down_BCHW, right_BCHW


def _window(images_BCHW: Tensor, size: int) -> Tensor:
    """A Gaussian over a square of `size` pixels (deviation: half of it), tiled over the image."""
    height, width = images_BCHW.shape[2:]
    offsets = torch.arange(size, device=images_BCHW.device) - (size - 1) / 2
    bell = torch.exp(-0.5 * (offsets / (size / 2)) ** 2)
    rows, columns = (bell.repeat(-(-length // size))[:length] for length in (height, width))
    return torch.outer(rows, columns)
