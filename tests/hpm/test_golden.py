"""Every number of one official step, from the official weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hpm.config import Decoder, Encoder, Predictor
from hpm.determinism import settle
from hpm.losses import absolute_loss, feature_loss, reconstruction_loss, relative_loss
from hpm.masking import split_patches
from hpm.model import MaskedModel, positions
from hpm.patches import patchify

ENCODER = Encoder(patch_size=8, width=48, depth=2, heads=3)
DECODER = Decoder(width=32, depth=1, heads=4)

# Official name (anchored, as a pattern) to ours; positions are computed here, not stored.
NAMES = {
    r"(cls_token|patch_embed|blocks|norm)\b": r"encoder.\1",
    r"decoder_embed\b": "decoder_input.embed",
    r"mask_token\b": "decoder_input.mask_token",
    r"decoder_blocks_losspred\b": "loss_predictor.blocks",
    r"decoder_norm_losspred\b": "loss_predictor.norm",
    r"decoder_pred_losspred\b": "loss_predictor.output",
    r"decoder_blocks\b": "reconstructor.blocks",
    r"decoder_norm\b": "reconstructor.norm",
    r"decoder_pred\b": "reconstructor.output",
}


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def golden(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """The official numbers, on each device."""
    settle(1)
    with np.load(Path(__file__).parents[1] / "golden" / "official_step.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]).to(request.param) for name in arrays.files}


def _part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in golden.items() if n.startswith(prefix)}


def _ours(official: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, value in official.items():
        if not name.endswith("pos_embed"):
            (pattern,) = (pattern for pattern in NAMES if re.match(pattern, name))
            state[re.sub(f"^{pattern}", NAMES[pattern], name)] = value
    return state


def _close(ours: Tensor, official: Tensor) -> None:
    error = (ours.detach().double() - official.double()).norm() / official.double().norm()
    assert error < 1e-4


def _model(golden: dict[str, Tensor], role: str) -> MaskedModel:
    model = MaskedModel(ENCODER, DECODER, Predictor(), image_size=32)
    model.load_state_dict(_ours(_part(golden, f"{role}/")))
    return model.to(golden["images"].device)


def test_positions__equal_the_official_tables(golden: dict[str, Tensor]) -> None:
    for name, width in (("pos_embed", ENCODER.width), ("decoder_pos_embed", DECODER.width)):
        official = golden[f"student/{name}"][0].cpu()
        assert official[0].abs().max() == 0
        torch.testing.assert_close(positions(4, width), official[1:], rtol=0, atol=1e-6)


def test_teacher__sees_whole_images_as_officially(golden: dict[str, Tensor]) -> None:
    teacher = _model(golden, "teacher")
    with torch.no_grad():
        _close(teacher.encoder(golden["images"]), golden["teacher_tokens"])
        _close(teacher.predict_loss(golden["images"]), golden["teacher_predicted_loss"])


def test_feature_loss__equals_the_official(golden: dict[str, Tensor]) -> None:
    hidden = golden["feature_target"][golden["mask"]].reshape(golden["feature_prediction"].shape)
    loss = feature_loss(golden["feature_prediction"], hidden)
    _close(loss, golden["feature_loss_per_patch"])
    _close(loss.mean(), golden["feature_loss"])


def test_student_step__equals_the_official_with_its_gradients(golden: dict[str, Tensor]) -> None:
    student, images, mask = _model(golden, "student"), golden["images"], golden["mask"]
    visible, hidden = split_patches(mask, 12)
    _close(student.encoder(images, visible), golden["student_latent"])
    prediction = student(images, visible, hidden)
    _close(prediction.values_BMP, golden["prediction_masked"])
    _close(prediction.loss_BM, golden["predicted_loss_masked"])

    target = patchify(images, 8).take_along_dim(hidden[:, :, None], dim=1)
    loss = reconstruction_loss(prediction.values_BMP, target)
    _close(loss, golden["reconstruction_loss_per_patch"])
    _close(loss.mean(), golden["reconstruction_loss"])
    _close(absolute_loss(prediction.loss_BM, loss.detach()), golden["predictor_loss_absolute"])
    relative = relative_loss(prediction.loss_BM, loss.detach())
    _close(relative, golden["predictor_loss_relative"])
    total = loss.mean() + relative
    _close(total, golden["total_loss"])

    total.backward()
    parameters = dict(student.named_parameters())
    gradients = _ours(_part(golden, "grad/"))
    assert len(gradients) == 8
    for name, official in gradients.items():
        _close(parameters[name].grad, official)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
    _close(norm, golden["grad_norm"])
