"""Which patches are hidden: some by predicted loss, the others at random.

Masks are boolean and True means hidden. Letters: B images, N patches, K visible, M hidden.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["draw_mask", "select_hard", "split_patches"]


def select_hard(
    predicted_loss_BN: Tensor, count: int, *, prefer: Literal["hard", "easy"] = "hard"
) -> Tensor:
    """The `count` patches of highest (or, preferring easy ones, lowest) predicted loss, as a mask.

    Of equal patches the first in reading order are taken.
    """
    order_BN = predicted_loss_BN.argsort(dim=1, descending=prefer == "hard", stable=True)
    return _mark(order_BN[:, :count], predicted_loss_BN.shape[1])


def draw_mask(
    noise_BN: Tensor,
    predicted_loss_BN: Tensor | None,
    *,
    num_masked: int,
    num_hard: int,
    prefer: Literal["hard", "easy"] = "hard",
) -> Tensor:
    """Mask [B, N] that hides exactly `num_masked` patches of each image.

    The `num_hard` patches that `select_hard` names are always hidden; the rest is uniform over
    the other patches where the noise is (finite, independent and identically distributed).
    """
    assert 0 <= num_hard <= num_masked <= noise_BN.shape[1]
    if num_hard > 0:
        assert predicted_loss_BN is not None, "hard patches need a predicted loss"
        hard_BN = select_hard(predicted_loss_BN, num_hard, prefer=prefer)
        noise_BN = noise_BN.masked_fill(hard_BN, torch.inf)
    order_BN = noise_BN.argsort(dim=1, descending=True, stable=True)
    return _mark(order_BN[:, :num_masked], noise_BN.shape[1])


def split_patches(mask_BN: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Indices of the visible [B, K] and of the hidden patches [B, M], each in reading order.

    The count is passed since reading it from the mask would wait for the device.
    """
    order_BN = mask_BN.byte().argsort(dim=1, stable=True)
    num_visible = mask_BN.shape[1] - num_masked
    return order_BN[:, :num_visible], order_BN[:, num_visible:]


def _mark(indices_BK: Tensor, num_patches: int) -> Tensor:
    mask_BN = torch.zeros(
        indices_BK.shape[0], num_patches, dtype=torch.bool, device=indices_BK.device
    )
    return mask_BN.scatter_(1, indices_BK, True)
