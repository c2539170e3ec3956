"""Which patches are hidden: some by a score such as their predicted loss, the others by noise.

Masks are boolean and True means hidden. What is chosen are units, squares of patches that are
hidden together; most often a unit is one patch. Letters: B images, N patches, K visible, M hidden,
U units.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["draw_mask", "pool_units", "select_hard", "split_patches", "spread_units"]


def select_hard(
    score_BU: Tensor, count: int, *, prefer: Literal["hard", "easy"] = "hard"
) -> Tensor:
    """The `count` units of highest (or, preferring easy ones, lowest) score, as a mask.

    Of equal units the first in reading order are taken.
    """
    order_BU = score_BU.argsort(dim=1, descending=prefer == "hard", stable=True)
    return _mark(order_BU[:, :count], score_BU.shape[1])


def draw_mask(
    noise_BU: Tensor,
    score_BU: Tensor | None,
    *,
    num_masked: int,
    num_hard: int,
    prefer: Literal["hard", "easy"] = "hard",
) -> Tensor:
    """Mask [B, U] that hides exactly `num_masked` units of each image (paper, Figure 3).

    The `num_hard` units that `select_hard` names are always hidden; of the others those with the
    highest noise (finite), which is uniform where noise is independent and identically distributed.
    """
    assert 0 <= num_hard <= num_masked <= noise_BU.shape[1]
    if num_hard > 0:
        assert score_BU is not None, "hard patches need a score"
        hard_BU = select_hard(score_BU, num_hard, prefer=prefer)
        noise_BU = noise_BU.masked_fill(hard_BU, torch.inf)
    order_BU = noise_BU.argsort(dim=1, descending=True, stable=True)
    return _mark(order_BU[:, :num_masked], noise_BU.shape[1])


def pool_units(values_BN: Tensor, unit: int) -> Tensor:
    """Means [B, U] over the squares of `unit` by `unit` patches of a square image."""
    if unit == 1:
        return values_BN
    side = round(values_BN.shape[1] ** 0.5)
    squares = values_BN.reshape(-1, side // unit, unit, side // unit, unit)
    return squares.mean(dim=(2, 4)).flatten(1)


def spread_units(mask_BU: Tensor, unit: int) -> Tensor:
    """Mask [B, N] of patches from one of units."""
    if unit == 1:
        return mask_BU
    side = round(mask_BU.shape[1] ** 0.5)
    squares = mask_BU.reshape(-1, side, 1, side, 1).expand(-1, -1, unit, -1, unit)
    return squares.flatten(1)


def split_patches(mask_BN: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Indices of the visible [B, K] and of the hidden patches [B, M], each in reading order.

    The count is passed since reading it from the mask would wait for the device.
    """
    order_BN = mask_BN.byte().argsort(dim=1, stable=True)
    num_visible = mask_BN.shape[1] - num_masked
    return order_BN[:, :num_visible], order_BN[:, num_visible:]


def _mark(indices_BK: Tensor, num_units: int) -> Tensor:
    mask_BU = torch.zeros(
        indices_BK.shape[0], num_units, dtype=torch.bool, device=indices_BK.device
    )
    return mask_BU.scatter_(1, indices_BK, True)
