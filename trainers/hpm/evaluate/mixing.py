"""Mixup and CutMix: two images become two mixtures, and so do their labels.

An image is mixed with its neighbour in the epoch's order, so whoever computes a step mixes the same
pairs; all of them by one weight or one box (officially each GPU draws its own in every pass).
Letters: B images (an even number), S their side, C classes.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import one_hot

from hpm.evaluate.finetune_config import Augment

__all__ = ["Mixing", "draw_mixing", "mix", "smooth"]


class Mixing(NamedTuple):
    """How all pairs of a step are mixed."""

    own: float
    """Weight of an image's own label, in [0, 1]; the other one's has the rest."""
    box: tuple[slice, slice] | None
    """Rows and columns that are the other one's; None where all pixels are weighed."""


def draw_mixing(augment: Augment, image_size: int, rng: np.random.Generator) -> Mixing:
    """Of mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899), whichever is on or drawn.

    A box that the border cuts off counts by what is left of it.
    """
    assert augment.mixes, augment
    by_box = augment.mixup == 0 or (augment.cutmix > 0 and rng.random() < 0.5)
    if not by_box:
        return Mixing(float(rng.beta(augment.mixup, augment.mixup)), None)
    cut = int(image_size * sqrt(1.0 - rng.beta(augment.cutmix, augment.cutmix)))
    starts = rng.integers(image_size, size=2) - cut // 2
    rows, columns = (
        slice(max(0, start), min(image_size, start + cut)) for start in starts.tolist()
    )
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixing(1.0 - area / image_size**2, (rows, columns))


def smooth(labels_B: Tensor, *, classes: int, smoothing: float) -> Tensor:
    """Targets [B, C] of sum 1: of each label a part is spread evenly over all classes (timm's)."""
    sure_BC = one_hot(labels_B, classes).float()
    return (1.0 - smoothing) * sure_BC + smoothing / classes


def mix(images_BCHW: Tensor, targets_BC: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Images and targets, each mixed with its neighbour's: 0 with 1, 2 with 3, and so on."""
    others_BCHW, others_BC = _neighbours(images_BCHW), _neighbours(targets_BC)
    if mixing.box is None:
        images_BCHW = mixing.own * images_BCHW + (1.0 - mixing.own) * others_BCHW
    else:
        rows, columns = mixing.box
        images_BCHW = images_BCHW.clone()
        images_BCHW[:, :, rows, columns] = others_BCHW[:, :, rows, columns]
    return images_BCHW, mixing.own * targets_BC + (1.0 - mixing.own) * others_BC


def _neighbours(values: Tensor) -> Tensor:
    assert len(values) % 2 == 0, "only an even number of images can be mixed in pairs"
    return values.reshape(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)
