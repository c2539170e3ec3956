"""Scores of whole images from squares that slide over them.

Letters: C classes, H, W height and width of an image, S side of a square, K squares.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

__all__ = ["corners", "guess", "score_images"]

_PASS = 16
"""Squares of one pass. Part of the numbers: a product's last bits depend on its shape."""


def corners(length: int, crop: int, stride: int) -> list[int]:
    """Where squares begin along a side: `stride` apart, the last one at the end."""
    assert length >= crop, "an image is at least as large as a square"
    count = -(-(length - crop) // stride) + 1
    return [min(number * stride, length - crop) for number in range(count)]


@torch.no_grad()
def score_images(
    network: nn.Module, images: Sequence[Tensor], *, crop: int, stride: int, reduced: bool
) -> Iterator[Tensor]:
    """Scores [C, H, W] of each image [3, H, W]: means over all squares that a pixel is in.

    An image smaller than a square is filled up with 0. `reduced` passes are in bfloat16; what a
    square's pixels score does not depend on the images beside it but for last bits.
    """
    device = next(network.parameters()).device
    filled = [pad(x, (0, max(0, crop - x.shape[2]), 0, max(0, crop - x.shape[1]))) for x in images]
    rows, columns = (
        [corners(whole.shape[axis], crop, stride) for whole in filled] for axis in (1, 2)
    )
    places = [list(product(*sides)) for sides in zip(rows, columns, strict=True)]
    squares = torch.stack(
        [
            whole[:, y : y + crop, x : x + crop]
            for whole, at in zip(filled, places, strict=True)
            for y, x in at
        ]
    )
    coarse = []
    for part in torch.split(squares, _PASS):
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            coarse.append(network(part.to(device))[0].float())
    found = iter(torch.cat(coarse))
    for image, whole, at in zip(images, filled, places, strict=True):
        scores_CHW = _average([next(found) for _ in at], at, whole.shape[1:], crop)
        yield scores_CHW[:, : image.shape[1], : image.shape[2]]


def _average(
    coarse: Sequence[Tensor], places: Sequence[tuple[int, int]], size: torch.Size, crop: int
) -> Tensor:
    total_CHW = coarse[0].new_zeros(len(coarse[0]), *size)
    count_HW = coarse[0].new_zeros(size)
    for scores, (y, x) in zip(coarse, places, strict=True):
        box = (slice(y, y + crop), slice(x, x + crop))
        total_CHW[:, *box] += _sized(scores, (crop, crop))
        count_HW[box] += 1
    return total_CHW / count_HW


def guess(scores_CHW: Tensor, height: int, width: int) -> Tensor:
    """The best class of each pixel [height, width], uint8, on the CPU; of equals the lowest."""
    return _sized(scores_CHW, (height, width)).argmax(dim=0).to(torch.uint8).cpu()


def _sized(scores_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    if scores_CHW.shape[1:] == size:
        return scores_CHW
    return interpolate(scores_CHW[None], size=size, mode="bilinear")[0]
