"""Hard Patches Mining: the loss of one batch, in the paper's order.

With teacher t, student s, image x, mask M and its hidden patches i:

    L_t(x)  = predicted losses of the whole image          (teacher, no gradient)
    M       = the patches with the highest L_t, the others at random
    x^, L_s = reconstruction and predicted losses          (student, from the visible patches)
    L_rec   = mean_i |x^_i - x_i|^2
    L_pred  = relative or absolute error of L_s against stop-gradient(L_rec per patch)
    L       = L_rec + L_pred
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, assert_never

import torch
from torch import Tensor

from hpm.config import Predictor, Pretrain, Target
from hpm.losses import absolute_loss, reconstruction_loss, relative_loss
from hpm.masking import draw_mask, split_patches
from hpm.model import MaskedModel, Prediction
from hpm.patches import normalize_patches, patchify

__all__ = ["Losses", "Student", "hpm_losses"]

Student: TypeAlias = Callable[[Tensor, Tensor, Tensor], Prediction]
"""A `MaskedModel`, or what stands around one."""


class Losses(NamedTuple):
    """Scalars of one batch, and what was hidden of it.

    `predictor` is None where no loss predictor is trained.
    """

    total: Tensor
    reconstruction: Tensor
    predictor: Tensor | None
    mask_BN: Tensor


def hpm_losses(
    student: Student,
    teacher: MaskedModel | None,
    images_BCHW: Tensor,
    noise_BN: Tensor,
    *,
    config: Pretrain,
    num_hard: int,
) -> Losses:
    """Losses of a batch of which the teacher chooses `num_hard` of the hidden patches."""
    reduced = torch.autocast(
        images_BCHW.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
    )
    teacher_loss_BN = None
    if num_hard > 0:
        assert teacher is not None, "hard patches need a teacher"
        with torch.no_grad(), reduced:
            teacher_loss_BN = teacher.predict_loss(images_BCHW)

    mask_BN = draw_mask(
        noise_BN,
        teacher_loss_BN,
        num_masked=config.num_masked,
        num_hard=num_hard,
        prefer=config.mask.prefer,
    )
    visible_BK, hidden_BM = split_patches(mask_BN, config.num_masked)

    with reduced:
        prediction = student(images_BCHW, visible_BK, hidden_BM)

    target_BNP = _target(images_BCHW, config.target, config.encoder.patch_size)
    target_BMP = target_BNP.take_along_dim(hidden_BM[:, :, None], dim=1)
    loss_BM = reconstruction_loss(prediction.patches_BMP.float(), target_BMP)
    reconstruction = loss_BM.mean()
    if prediction.loss_BM is None:
        return Losses(reconstruction, reconstruction, None, mask_BN)
    # The stop-gradient: a reconstruction must not become easy to foretell.
    predictor = _predictor_loss(prediction.loss_BM.float(), loss_BM.detach(), config.predictor)
    return Losses(reconstruction + predictor, reconstruction, predictor, mask_BN)


def _target(images_BCHW: Tensor, target: Target, patch_size: int) -> Tensor:
    patches_BNP = patchify(images_BCHW, patch_size)
    match target.kind:
        case "pixels":
            return patches_BNP
        case "normalized-pixels":
            return normalize_patches(patches_BNP)
        case other:
            assert_never(other)


def _predictor_loss(predicted_BM: Tensor, loss_BM: Tensor, predictor: Predictor) -> Tensor:
    match predictor.objective:
        case "relative":
            return relative_loss(predicted_BM, loss_BM)
        case "absolute":
            return absolute_loss(predicted_BM, loss_BM)
        case "none":
            raise AssertionError("a model without a loss predictor predicts no losses")
        case other:
            assert_never(other)
