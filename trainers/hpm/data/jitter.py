"""What a detector is shown of an image: a square, with the objects' masks moved along.

Large-scale jitter as in detectron2 (ViTDet's recipe). Sizes are width and height; letters: O
objects, S side of the square.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpm.data.views import IMAGENET_MEAN, Pixels

__all__ = ["Shown", "fitted_view", "jittered_view"]

_Masks = NDArray[np.bool_]
_Box = tuple[float, float, float, float]

_PADDING = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
"""The mean colour: about 0 once normalised."""


class Shown(NamedTuple):
    """A square view."""

    pixels: Pixels
    """[S, S, 3]; what the image does not cover, right and below, has the mean colour."""
    size: tuple[int, int]
    """Of the part that the image covers."""
    masks: _Masks
    """[O, S, S]; empty for objects that are out of sight."""


def jittered_view(
    image: Image.Image,
    masks_OHW: _Masks,
    *,
    image_size: int,
    scales: tuple[float, float],
    flip: bool,
    rng: np.random.Generator,
) -> Shown:
    """The image mirrored in half of the cases, scaled by a factor, cropped where it is too large.

    A factor of 1 makes its longer side `image_size`; factors are drawn from [least, greatest].
    """
    chance, size, left, top = rng.random(4).tolist()
    if flip and chance < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        masks_OHW = masks_OHW[:, :, ::-1]
    factor = scales[0] + (scales[1] - scales[0]) * size
    scale = factor * image_size / max(image.size)
    whole = [max(1, round(side * scale)) for side in image.size]
    covered = min(whole[0], image_size), min(whole[1], image_size)
    # In pixels of the scaled image, and then of the image itself.
    corner = [int(d * (w - c + 1)) for d, w, c in zip((left, top), whole, covered, strict=True)]
    ends = [start + length for start, length in zip(corner, covered, strict=True)]
    ratios = [side / length for side, length in zip(image.size, whole, strict=True)]
    x0, y0, x1, y1 = (v * r for v, r in zip((*corner, *ends), ratios * 2, strict=True))
    box = (x0, y0, min(x1, image.width), min(y1, image.height))
    return _show(image, masks_OHW, box, covered, image_size)


def fitted_view(image: Image.Image, *, image_size: int) -> Shown:
    """The whole image, its longer side brought to `image_size`; without masks."""
    scale = image_size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    none = np.zeros((0, image.height, image.width), dtype=np.bool_)
    return _show(image, none, (0, 0, *image.size), (width, height), image_size)


def _show(
    image: Image.Image, masks_OHW: _Masks, box: _Box, size: tuple[int, int], side: int
) -> Shown:
    pixels = Image.new("RGB", (side, side), _PADDING)
    pixels.paste(image.resize(size, Image.Resampling.BILINEAR, box=box))
    masks = np.zeros((len(masks_OHW), side, side), dtype=np.bool_)
    for number, mask in enumerate(masks_OHW):
        bits = Image.fromarray(mask.astype(np.uint8))
        scaled = bits.resize(size, Image.Resampling.NEAREST, box=box)
        masks[number, : size[1], : size[0]] = np.asarray(scaled, dtype=np.bool_)
    return Shown(np.asarray(pixels), size, masks)
