from dataclasses import replace

import pytest
import torch
from timm.layers.norm import LayerNorm as TimmLayerNorm
from torch import nn

from hpm.config import Data, Decoder, Encoder, Mask, Predictor, Pretrain
from hpm.learner import build_student
from hpm.masking import split_patches
from hpm.model import MaskedModel, VisionTransformer, initialize
from hpm.teacher import build_teacher, update_teacher


def _mae(config: Pretrain) -> Pretrain:
    return replace(config, mask=Mask(hard_share=0.0), predictor=Predictor(objective="none"))


def _images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_encoder__gives_cls_and_every_patch(tiny: Pretrain) -> None:
    encoder = build_student(tiny, 0).encoder
    assert encoder(_images()).shape == (2, 17, 16)


def test_encoder__sees_visible_patches_only(tiny: Pretrain) -> None:
    encoder, images = build_student(tiny, 0).encoder, _images()
    visible = torch.tensor([[0, 5, 6], [1, 2, 15]])
    changed = images.clone()
    changed[0, :, 12:, 12:] = 9.0
    tokens = encoder(images, visible)
    assert tokens.shape == (2, 4, 16)
    assert tokens.equal(encoder(changed, visible))
    assert not encoder(images).equal(encoder(changed))


def test_attend__is_what_the_cls_token_pays_in_the_last_block(tiny: Pretrain) -> None:
    config = replace(tiny, encoder=replace(tiny.encoder, depth=2))
    encoder, images = build_student(config, 0).encoder, _images()
    last, entered = encoder.blocks[-1], []
    last.norm1.register_forward_hook(lambda _, __, tokens: entered.append(tokens))
    encoder(images)
    query, key, _ = last.attn.qkv(entered[0]).chunk(3, dim=-1)
    rows = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / 8**0.5
        rows.append(scores.softmax(dim=-1)[:, 0, 1:])
    torch.testing.assert_close(encoder.attend(images), (rows[0] + rows[1]) / 2)


def test_model__predicts_each_hidden_patch(tiny: Pretrain) -> None:
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 4:] = True
    prediction = build_student(tiny, 0)(_images(), *split_patches(mask, 12))
    assert prediction.values_BMP.shape == (2, 12, 48)
    assert prediction.loss_BM is not None
    assert prediction.loss_BM.shape == (2, 12)


def test_model__norms_have_the_official_epsilon(tiny: Pretrain) -> None:
    norms = [m for m in build_student(tiny, 0).modules() if isinstance(m, nn.LayerNorm)]
    assert any(isinstance(norm, TimmLayerNorm) for norm in norms)
    assert {norm.eps for norm in norms} == {1e-6}


def test_model__draws_nothing_while_it_computes(tiny: Pretrain) -> None:
    model = build_student(tiny, 0).train()
    assert model.encoder(_images()).equal(model.encoder(_images()))


def test_mae__has_no_predictor_and_no_teacher(tiny: Pretrain) -> None:
    config = _mae(tiny)
    student = build_student(config, 0)
    assert student.loss_predictor is None
    assert not config.needs_teacher
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 4:] = True
    assert student(_images(), *split_patches(mask, 12)).loss_BM is None
    with pytest.raises(AssertionError, match="no loss predictor"):
        student.predict_loss(_images())


def test_predicted_loss__in_bfloat16_still_tells_patches_apart() -> None:
    config = Pretrain(
        data=Data(image_size=64),
        encoder=Encoder(patch_size=4, width=16, depth=1, heads=2),
        decoder=Decoder(width=16, depth=1, heads=2),
    )
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = build_student(config, 0).predict_loss(images)
    assert loss.dtype == torch.float32
    assert len(loss.unique()) > 0.95 * 256
    assert len(loss.bfloat16().unique()) < 0.9 * 256


@pytest.mark.parametrize("head", ["patch", "scalar"])
def test_predicted_loss__is_not_rounded_to_bfloat16(tiny: Pretrain, head: str) -> None:
    student = build_student(replace(tiny, predictor=Predictor(head=head)), 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = student.predict_loss(_images())
    assert not loss.equal(loss.bfloat16().float())


def test_teacher__has_no_reconstructor_and_no_gradient(tiny: Pretrain) -> None:
    student = build_student(tiny, 0)
    teacher = build_teacher(tiny, student)
    assert teacher.reconstructor is None
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher.predict_loss(_images()).equal(student.predict_loss(_images()))


@pytest.mark.parametrize("momentum", [0.0, 0.75, 1.0])
def test_teacher__moves_by_its_momentum(tiny: Pretrain, momentum: float) -> None:
    student = build_student(tiny, 0)
    teacher = build_teacher(tiny, student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    update_teacher(teacher, student, momentum)
    for name, parameter in teacher.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * (before[name] + 1.0)
        torch.testing.assert_close(parameter, expected)


def test_student__depends_on_the_seed_alone(tiny: Pretrain) -> None:
    first = build_student(tiny, 7).state_dict()
    torch.manual_seed(99)
    second, other = build_student(tiny, 7).state_dict(), build_student(tiny, 8).state_dict()
    assert all(first[name].equal(second[name]) for name in first)
    assert not first["encoder.cls_token"].equal(other["encoder.cls_token"])


def test_student__starts_as_an_mae_starts(tiny: Pretrain) -> None:
    hpm, mae = build_student(tiny, 7).state_dict(), build_student(_mae(tiny), 7).state_dict()
    assert set(mae) < set(hpm)
    assert all(mae[name].equal(hpm[name]) for name in mae)


def test_initialize__gives_an_encoder_alone_the_same_weights(tiny: Pretrain) -> None:
    alone = VisionTransformer(tiny.encoder, image_size=16)
    whole = MaskedModel(tiny.encoder, tiny.decoder, tiny.predictor, image_size=16)
    for model in (alone, whole):
        initialize(model, seed=3)
    for name, value in alone.state_dict().items():
        assert value.equal(whole.encoder.state_dict()[name]), name


def test_initialize__is_xavier_with_small_tokens() -> None:
    config = Pretrain()
    encoder = VisionTransformer(replace(config.encoder, depth=1), image_size=32)
    initialize(encoder, seed=0)
    weight = encoder.patch_embed.proj.weight
    bound = (6 / (768 + 768)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert 0.015 < encoder.cls_token.std() < 0.025
    bias = encoder.patch_embed.proj.bias
    assert bias is not None
    assert 0.95 * 768**-0.5 < bias.abs().max() <= 768**-0.5
    assert abs(bias.mean()) < 0.1 * 768**-0.5
    others = {n: p for n, p in encoder.blocks.named_parameters() if n.endswith("bias")}
    assert not any(other.any() for other in others.values())
