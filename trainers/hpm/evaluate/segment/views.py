"""What segmentation is shown: random squares in training, whole images in validation.

Sizes, crops and distortions follow mmsegmentation's for ADE20K; images are resized by Pillow's
bilinear filter, which smoothes where it shrinks, and maps by the nearest pixel. All draws of an
image depend on (seed, epoch, index of the image) alone. Letters: B images of a part, S side of a
view, U coins of an image, H, W height and width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hpm.data.maps import VOID, ClassMap, MapSource
from hpm.data.sampling import Key
from hpm.data.views import Pixels, normalize
from hpm.evaluate.segment.config import Segment
from hpm.randomness import Purpose, generator

__all__ = ["Part", "Views", "Whole", "WholeViews", "distort", "scaled_size"]

_LONGER = 4
"""An image's longer side is at most so many times `short_side`: ADE20K's 2048 by 512."""

_REDRAWS = 10

# mmsegmentation's PhotoMetricDistortion; its hue of 18 is of 180 steps, Pillow's of 256.
_BRIGHTNESS = 32.0
_FACTORS = (0.5, 1.5)
_HUE = 18 / 180 * 256


class Part(NamedTuple):
    """Training views of one pass."""

    images: Tensor
    """[B, 3, S, S] float32, normalised, 0 beyond the image."""
    maps: Tensor
    """[B, S, S] uint8, classes, void beyond the image."""
    coins: Tensor
    """[B, U] float32 in [0, 1): which branches and channels of the network each image skips."""
    indices: Tensor
    """[B] int64, positions in the source."""


class Whole(NamedTuple):
    """Images of one validation batch, each of a size of its own."""

    images: tuple[Tensor, ...]
    """[3, H, W] float32, normalised, scaled to the shorter side."""
    maps: tuple[Tensor, ...]
    """[H, W] uint8, classes at the annotation's own size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Training views by key."""

    source: MapSource
    config: Segment
    coins: int
    """Of one image."""
    seed: int

    def __call__(self, key: Key) -> Part:
        """The views of these images. Raises DataError where one cannot be read."""
        drawn = [self._view(int(index), key.epoch) for index in key.indices]
        images, maps, coins = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return Part(images, maps, coins, torch.from_numpy(key.indices))

    def _view(self, index: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        view, colour, drop = (
            generator(purpose, seed=self.seed, epoch=epoch, index=index)
            for purpose in (Purpose.VIEW, Purpose.AUGMENT, Purpose.DROP)
        )
        pixels, map_ = self._square(*self.source.pair(index), view)
        if self.config.distort:
            pixels = distort(pixels, colour)
        height, width = map_.shape
        side = self.config.crop
        image_3SS = torch.zeros(3, side, side)
        image_3SS[:, :height, :width] = normalize(pixels[None])[0]
        map_SS = torch.full((side, side), VOID, dtype=torch.uint8)
        map_SS[:height, :width] = torch.from_numpy(map_)
        return image_3SS, map_SS, torch.from_numpy(drop.random(self.coins, dtype=np.float32))

    def _square(
        self, image: Image.Image, map_: ClassMap, rng: np.random.Generator
    ) -> tuple[Pixels, ClassMap]:
        """A crop of the scaled image; smaller than `crop` where that is."""
        config, (low, high) = self.config, self.config.scale
        mirrored, draw = rng.random(2).tolist()
        size = scaled_size(image, config.short_side, low + (high - low) * draw)
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        scaled = np.asarray(Image.fromarray(map_).resize(size, Image.Resampling.NEAREST))
        for _ in range(1 + _REDRAWS):
            top, left = (
                int(draw * (max(length - config.crop, 0) + 1))
                for length, draw in zip(scaled.shape, rng.random(2).tolist(), strict=True)
            )
            box = np.s_[top : top + config.crop, left : left + config.crop]
            if config.crop_share == 1 or _is_mixed(scaled[box], config.crop_share):
                break
        flip = np.s_[:, ::-1] if config.flip and mirrored < 0.5 else np.s_[:, :]
        return np.array(pixels[box][flip]), np.array(scaled[box][flip])


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeViews:
    """Validation images by key."""

    source: MapSource
    short_side: int | None

    def __call__(self, key: Key) -> Whole:
        """The images. Raises DataError where one cannot be read."""
        pairs = [self.source.pair(int(index)) for index in key.indices]
        return Whole(
            tuple(self._image(image) for image, _ in pairs),
            tuple(torch.from_numpy(map_) for _, map_ in pairs),
        )

    def _image(self, image: Image.Image) -> Tensor:
        size = scaled_size(image, self.short_side, 1.0)
        return normalize(np.array(image.resize(size, Image.Resampling.BILINEAR))[None])[0]


def scaled_size(image: Image.Image, short_side: int | None, factor: float) -> tuple[int, int]:
    """Width and height of an image with this shorter side (null: its own), times the factor."""
    if short_side is not None:
        factor *= min(short_side / min(image.size), _LONGER * short_side / max(image.size))
    width, height = (max(1, int(length * factor + 0.5)) for length in image.size)
    return width, height


def _is_mixed(map_: ClassMap, share: float) -> bool:
    counts = np.bincount(map_[map_ != VOID].ravel())
    return int((counts > 0).sum()) > 1 and bool(counts.max() < share * counts.sum())


def distort(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Other brightness, contrast, saturation and hue, each in half of the cases.

    Contrast changes before or after the colours, as chance has it.
    """
    early, *chances = (rng.random(5) < 0.5).tolist()
    brightness, hue = rng.uniform(-1, 1, 2).tolist()
    contrast, saturation = rng.uniform(*_FACTORS, 2).tolist()
    if chances[0]:
        pixels = _moved(pixels, add=_BRIGHTNESS * brightness)
    if chances[1] and early:
        pixels = _moved(pixels, factor=contrast)
    if chances[2] or chances[3]:
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))
        if chances[2]:
            hsv[..., 1] = _moved(hsv[..., 1], factor=saturation)
        if chances[3]:
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(_HUE * hue)) % 256
        pixels = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    if chances[1] and not early:
        pixels = _moved(pixels, factor=contrast)
    return pixels


def _moved(values: Pixels, *, factor: float = 1.0, add: float = 0.0) -> Pixels:
    return (values.astype(np.float32) * factor + add).clip(0, 255).astype(np.uint8)
