"""What the encoder is shown of an image: a random crop in training, the middle in evaluation.

Sizes and boxes follow torchvision's RandomResizedCrop, Resize and CenterCrop, on which the
official recipe rests; the draws come from the generator that is passed in.
"""

from math import exp, log, sqrt
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpm.config import Data

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Crop",
    "Pixels",
    "crop_box",
    "crop_view",
    "draw_crop",
    "evaluation_view",
    "normalize",
    "training_view",
]

Pixels: TypeAlias = NDArray[np.uint8]
"""[S, S, 3] or, for a batch, [B, S, S, 3]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ASPECTS = (3 / 4, 4 / 3)


class Crop(NamedTuple):
    """What a view shows of an image: a box in pixels, mirrored or not."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool


def training_view(image: Image.Image, data: Data, rng: np.random.Generator) -> Pixels:
    """A random crop of an RGB image, resized (bicubic) and mirrored in half of the cases."""
    return crop_view(image, draw_crop(image.size, data, rng), data.image_size)


def draw_crop(size: tuple[int, int], data: Data, rng: np.random.Generator) -> Crop:
    """A random crop of an image of this width and height, mirrored in half of the cases."""
    mirrored = bool(rng.random() < 0.5)
    box = crop_box(*size, min_crop=data.min_crop, rng=rng)
    return Crop(*box, mirrored=data.flip and mirrored)


def crop_view(image: Image.Image, crop: Crop, image_size: int) -> Pixels:
    """The crop of an RGB image, resized (bicubic)."""
    view = image.crop(crop[:4]).resize((image_size, image_size), Image.Resampling.BICUBIC)
    if crop.mirrored:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def crop_box(
    width: int, height: int, *, min_crop: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop: [min_crop, 1] of the area, aspect 3/4 to 4/3.

    After ten draws that do not fit, the largest central crop with an aspect in that range.
    """
    low, high = log(_ASPECTS[0]), log(_ASPECTS[1])
    for _ in range(10):
        size, shape, left, top = rng.random(4).tolist()
        area = width * height * (min_crop + (1 - min_crop) * size)
        aspect = exp(low + (high - low) * shape)
        w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    w = min(width, round(height * _ASPECTS[1]))
    h = min(height, round(width / _ASPECTS[0]))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def evaluation_view(image: Image.Image, image_size: int) -> Pixels:
    """The middle of an RGB image whose shorter side is brought to 256/224 of `image_size`.

    Above 224 pixels, officially, it is brought to `image_size` itself. An image of just that size
    is taken as it is.
    """
    if image.size != (image_size, image_size):
        shorter = image_size * 256 // 224 if image_size <= 224 else image_size
        shortest = min(image.size)
        width, height = (shorter * side // shortest for side in image.size)
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)


def normalize(pixels: Pixels) -> Tensor:
    """[B, S, S, 3] bytes as [B, 3, S, S] float32, less ImageNet's mean, over its deviation."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return images.div_(255).sub_(mean).div_(std)
