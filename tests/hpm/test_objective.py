from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hpm.config import Mask, Predictor, Pretrain, Target
from hpm.learner import build_student
from hpm.losses import feature_loss
from hpm.masking import draw_mask
from hpm.model import MaskedModel, Prediction
from hpm.objective import Losses, Student, hpm_losses
from hpm.progress import Place
from hpm.schedules import at_step
from hpm.targets import build_target
from hpm.teacher import build_teacher


def _losses(
    student: Student,
    teacher: MaskedModel | None,
    config: Pretrain,
    place: Place,
    *,
    num_hard: int = 0,
) -> Losses:
    now = at_step(config, 0, epoch_steps=1)._replace(num_hard=num_hard)
    target = build_target(config, place)
    return hpm_losses(student, teacher, *_batch(), config=config, target=target, now=now)


def _batch(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, 16, 16, generator=generator),
        torch.rand(count, 16, generator=generator),
    )


def test_objective__hides_what_the_teacher_finds_hard(tiny: Pretrain, tiny_place: Place) -> None:
    images, noise = _batch()
    student = build_student(tiny, 0)
    teacher = build_teacher(tiny, build_student(tiny, 1))
    seen = []

    def watched(images_BCHW: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Prediction:
        seen.append(hidden_BM)
        prediction: Prediction = student(images_BCHW, visible_BK, hidden_BM)
        return prediction

    losses = _losses(watched, teacher, tiny, tiny_place, num_hard=6)
    mask = draw_mask(noise, teacher.predict_loss(images), num_masked=12, num_hard=6)
    assert seen[0].equal(mask.nonzero()[:, 1].reshape(3, 12))
    assert losses.mask_BN.equal(mask)


def test_objective__hides_what_the_teacher_attends_to_most(
    tiny: Pretrain, tiny_place: Place
) -> None:
    plain = Predictor(objective="none")
    config = replace(tiny, mask=Mask(guide="attention"), predictor=plain)
    teacher = build_teacher(config, build_student(config, 1))
    losses = _losses(build_student(config, 0), teacher, config, tiny_place, num_hard=12)
    attended = teacher.encoder.attend(_batch()[0]).topk(12, dim=1).indices
    assert losses.mask_BN.sum(dim=1).tolist() == [12] * 3
    assert losses.mask_BN.gather(1, attended).all()


def test_objective__does_not_run_the_teacher_without_hard_patches(
    tiny: Pretrain, tiny_place: Place
) -> None:
    student = build_student(tiny, 0)
    teacher = build_teacher(tiny, student)
    calls = []
    teacher.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    with_teacher = _losses(student, teacher, tiny, tiny_place)
    assert not calls
    assert with_teacher.total.equal(_losses(student, None, tiny, tiny_place).total)
    _losses(student, teacher, tiny, tiny_place, num_hard=1)
    assert calls


@pytest.mark.parametrize("objective", ["relative", "absolute"])
def test_objective__stops_the_gradient_into_the_reconstructor(
    tiny: Pretrain, tiny_place: Place, objective: str
) -> None:
    config = replace(tiny, predictor=Predictor(objective=objective))
    student = build_student(config, 0)
    losses = _losses(student, None, config, tiny_place)
    assert losses.predictor is not None
    losses.predictor.backward()
    assert student.reconstructor is not None
    assert all(p.grad is None for p in student.reconstructor.parameters())
    # It does reach the encoder, as officially.
    assert student.encoder.cls_token.grad is not None
    assert student.encoder.cls_token.grad.abs().max() > 0


def test_objective__compares_with_the_teachers_tokens_of_the_whole_image(
    tiny: Pretrain, tiny_place: Place
) -> None:
    config = replace(tiny, target=Target(kind="ema"))
    outputs = build_target(config, tiny_place).outputs
    student, other = (build_student(config, seed, outputs=outputs) for seed in (0, 1))
    teacher, seen = build_teacher(config, other), []

    def watched(images_BCHW: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Prediction:
        prediction: Prediction = student(images_BCHW, visible_BK, hidden_BM)
        seen.append((prediction.values_BMP, hidden_BM))
        return prediction

    losses = _losses(watched, teacher, config, tiny_place)
    ((values, hidden),) = seen
    tokens = teacher.encoder(_batch()[0])[:, 1:].take_along_dim(hidden[:, :, None], dim=1)
    torch.testing.assert_close(losses.reconstruction, feature_loss(values, tokens).mean())


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_objective__weighs_the_predictors_loss(
    tiny: Pretrain, tiny_place: Place, weight: float
) -> None:
    config = replace(tiny, predictor=Predictor(weight=weight))
    losses = _losses(build_student(config, 0), None, config, tiny_place)
    assert losses.predictor is not None
    torch.testing.assert_close(losses.total, losses.reconstruction + weight * losses.predictor)


def test_overlap__is_what_chance_alone_would_have_hidden(tiny: Pretrain, tiny_place: Place) -> None:
    images, noise = _batch()
    teacher = build_teacher(tiny, build_student(tiny, 1))
    student = build_student(tiny, 0)
    assert _losses(student, teacher, tiny, tiny_place).overlap == 1.0
    losses = _losses(student, teacher, tiny, tiny_place, num_hard=6)
    guided = draw_mask(noise, teacher.predict_loss(images), num_masked=12, num_hard=6)
    free = draw_mask(noise, None, num_masked=12, num_hard=0)
    assert losses.overlap == (guided & free).sum() / 36
    assert losses.overlap < 1.0


def test_objective__computes_losses_in_float32(tiny: Pretrain, tiny_place: Place) -> None:
    config = replace(tiny, precision="bfloat16")
    losses = _losses(build_student(config, 0), None, config, tiny_place)
    assert {loss.dtype for loss in losses[:3]} == {torch.float32}
