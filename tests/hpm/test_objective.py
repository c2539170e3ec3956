from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hpm.config import Predictor, Pretrain
from hpm.learner import build_student
from hpm.masking import draw_mask
from hpm.model import Prediction
from hpm.objective import hpm_losses
from hpm.teacher import build_teacher


def _batch(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, 16, 16, generator=generator),
        torch.rand(count, 16, generator=generator),
    )


def test_objective__hides_what_the_teacher_finds_hard(tiny: Pretrain) -> None:
    images, noise = _batch()
    student = build_student(tiny, 0)
    teacher = build_teacher(tiny, build_student(tiny, 1))
    seen = []

    def watched(images_BCHW: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Prediction:
        seen.append(hidden_BM)
        prediction: Prediction = student(images_BCHW, visible_BK, hidden_BM)
        return prediction

    losses = hpm_losses(watched, teacher, images, noise, config=tiny, num_hard=6)
    mask = draw_mask(noise, teacher.predict_loss(images), num_masked=12, num_hard=6)
    assert seen[0].equal(mask.nonzero()[:, 1].reshape(3, 12))
    assert losses.mask_BN.equal(mask)


def test_objective__does_not_run_the_teacher_without_hard_patches(tiny: Pretrain) -> None:
    student = build_student(tiny, 0)
    teacher = build_teacher(tiny, student)
    calls = []
    teacher.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    with_teacher = hpm_losses(student, teacher, *_batch(), config=tiny, num_hard=0)
    assert not calls
    assert with_teacher.total.equal(
        hpm_losses(student, None, *_batch(), config=tiny, num_hard=0).total
    )
    hpm_losses(student, teacher, *_batch(), config=tiny, num_hard=1)
    assert calls


@pytest.mark.parametrize("objective", ["relative", "absolute"])
def test_objective__stops_the_gradient_into_the_reconstructor(
    tiny: Pretrain, objective: str
) -> None:
    config = replace(tiny, predictor=Predictor(objective=objective))
    student = build_student(config, 0)
    losses = hpm_losses(student, None, *_batch(), config=config, num_hard=0)
    assert losses.predictor is not None
    losses.predictor.backward()
    assert student.reconstructor is not None
    assert all(p.grad is None for p in student.reconstructor.parameters())
    # It does reach the encoder, as officially.
    assert student.encoder.cls_token.grad is not None
    assert student.encoder.cls_token.grad.abs().max() > 0


def test_objective__computes_losses_in_float32(tiny: Pretrain) -> None:
    config = replace(tiny, precision="bfloat16")
    losses = hpm_losses(build_student(config, 0), None, *_batch(), config=config, num_hard=0)
    assert {loss.dtype for loss in losses[:3]} == {torch.float32}
