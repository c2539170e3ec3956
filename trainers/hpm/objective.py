"""Hard Patches Mining: the loss of one batch, in the paper's order.

With teacher t, student s, image x, target y, mask M and its hidden patches i:

    L_t(x)  = predicted losses of the whole image          (teacher, no gradient)
    M       = the patches with the highest L_t, the others at random
    y^, L_s = reconstruction and predicted losses          (student, from the visible patches)
    L_rec   = mean_i d(y^_i, y_i)                          (pixels: mean squared error)
    L_pred  = relative or absolute error of L_s against stop-gradient(L_rec per patch)
    L       = L_rec + weight * L_pred                      (official weight: 1)
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, assert_never

import torch
from torch import Tensor

from hpm.config import Mask, Predictor, Pretrain
from hpm.losses import absolute_loss, relative_loss
from hpm.masking import draw_mask, pool_units, split_patches, spread_units
from hpm.model import MaskedModel, Prediction
from hpm.schedules import Scheduled
from hpm.targets import Origin, Seen, Target

__all__ = ["Losses", "Student", "hpm_losses"]

Student: TypeAlias = Callable[[Tensor, Tensor, Tensor], Prediction]
"""A `MaskedModel`, or what stands around one."""


class Losses(NamedTuple):
    """Scalars of one batch, and what was hidden of it.

    `predictor` is None where no loss predictor is trained. `overlap` is the share of the hidden
    patches that the same noise hides without a guide.
    """

    total: Tensor
    reconstruction: Tensor
    predictor: Tensor | None
    overlap: Tensor
    mask_BN: Tensor


class _Look(NamedTuple):
    """What the teacher says of whole images."""

    guide_BU: Tensor | None = None
    tokens_BND: Tensor | None = None


def hpm_losses(
    student: Student,
    teacher: MaskedModel | None,
    images_BCHW: Tensor,
    noise_BU: Tensor,
    *,
    config: Pretrain,
    target: Target,
    now: Scheduled,
    origin: Origin | None = None,
) -> Losses:
    """Losses of a batch of which the teacher chooses `now.num_hard` of the hidden units."""
    device = images_BCHW.device.type
    reduced = torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16")
    with torch.no_grad(), reduced:
        look = _look(teacher, images_BCHW, config, guided=now.num_hard > 0)

    mask_BU, overlap = _mask(noise_BU, look.guide_BU, config.mask, now)
    mask_BN, num_hidden = spread_units(mask_BU, config.mask.unit), _patches(config, now)
    visible_BK, hidden_BM = split_patches(mask_BN, num_hidden)

    with reduced:
        prediction = student(images_BCHW, visible_BK, hidden_BM)

    with torch.no_grad():
        values_BN = target.values(Seen(images_BCHW, look.tokens_BND, origin))
        index = hidden_BM if values_BN.ndim == 2 else hidden_BM[:, :, None]
        values_BM = values_BN.take_along_dim(index, dim=1)
    loss_BM = target.loss(prediction.values_BMP.float(), values_BM)
    reconstruction = loss_BM.mean()
    if prediction.loss_BM is None:
        return Losses(reconstruction, reconstruction, None, overlap, mask_BN)
    # The stop-gradient: a reconstruction must not become easy to foretell.
    predictor = _predictor_loss(prediction.loss_BM.float(), loss_BM.detach(), config.predictor)
    total = reconstruction + config.predictor.weight * predictor
    return Losses(total, reconstruction, predictor, overlap, mask_BN)


def _look(
    teacher: MaskedModel | None, images_BCHW: Tensor, config: Pretrain, *, guided: bool
) -> _Look:
    attended = guided and config.mask.guide == "attention"
    predicted = guided and not attended
    wanted = config.target.kind == "ema"
    if not (guided or wanted):
        return _Look()
    assert teacher is not None, "hard patches and the target ema need a teacher"
    guide_BN = teacher.encoder.attend(images_BCHW) if attended else None
    tokens = teacher.encoder(images_BCHW) if predicted or wanted else None
    if predicted and tokens is not None:
        guide_BN = teacher.predicted(tokens)
    return _Look(
        None if guide_BN is None else pool_units(guide_BN, config.mask.unit),
        tokens[:, 1:].float() if wanted and tokens is not None else None,
    )


def _mask(
    noise_BU: Tensor, guide_BU: Tensor | None, settings: Mask, now: Scheduled
) -> tuple[Tensor, Tensor]:
    mask_BU = draw_mask(
        noise_BU,
        guide_BU,
        num_masked=now.num_masked,
        num_hard=now.num_hard,
        prefer=settings.prefer,
    )
    free_BU = draw_mask(noise_BU, None, num_masked=now.num_masked, num_hard=0)
    overlap = (mask_BU & free_BU).sum() / mask_BU.sum()
    return mask_BU, overlap


def _patches(config: Pretrain, now: Scheduled) -> int:
    return now.num_masked * config.mask.unit**2


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
