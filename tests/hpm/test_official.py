"""Encoders out of checkpoints that others made."""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from hpm.config import Encoder, Pretrain
from hpm.data.errors import DataError, UnreachableError
from hpm.evaluate.config import Checkpoint
from hpm.evaluate.references import run_checkpoint
from hpm.learner import build_student
from hpm.model import VisionTransformer
from hpm.official import read_encoder
from hpm.progress import Place
from hpm.weights import Description, export_encoder, load_encoder, timm_state


@pytest.fixture
def encoder(tiny: Pretrain) -> VisionTransformer:
    return build_student(tiny, 0).encoder


@pytest.fixture
def official(tiny: Pretrain, encoder: VisionTransformer) -> dict[str, Tensor]:
    """A student under the official names, decoders and all."""
    rest = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_embed.weight": torch.zeros(16, 16),
        "decoder_blocks_losspred.0.norm1.weight": torch.zeros(16),
        "decoder_pred.weight": torch.zeros(48, 16),
    }
    return {**timm_state(encoder), **rest}


SHAPES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "MAE": lambda state: {"model": state},
    "MAE with its arguments": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "HPM": lambda state: {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3},
    "bare": lambda state: state,
    "fine-tuned besides": lambda state: {"model": {**state, "head.weight": torch.zeros(2, 16)}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_read__finds_the_encoder(
    official: dict[str, Tensor],
    encoder: VisionTransformer,
    tiny: Pretrain,
    tmp_path: Path,
    shape: str,
) -> None:
    torch.save(SHAPES[shape](official), tmp_path / "x.pth")
    state = read_encoder(tmp_path / "x.pth", tiny.encoder, image_size=16)
    torch.testing.assert_close(state, timm_state(encoder), rtol=0, atol=0)


def test_read__takes_the_teacher_where_it_is_asked_for(
    official: dict[str, Tensor], tiny: Pretrain, tmp_path: Path
) -> None:
    average = {f"module.{name}": value + 1 for name, value in official.items()}
    torch.save({"state_dict": official, "ema_state_dict": average}, tmp_path / "x.pth")
    student, teacher = (
        read_encoder(tmp_path / "x.pth", tiny.encoder, image_size=16, role=role)
        for role in ("student", "teacher")
    )
    assert teacher["cls_token"].equal(student["cls_token"] + 1)


def test_read__resizes_positions(
    official: dict[str, Tensor], tiny: Pretrain, tmp_path: Path
) -> None:
    torch.save({"model": official}, tmp_path / "x.pth")
    state = read_encoder(tmp_path / "x.pth", tiny.encoder, image_size=32)
    assert state["pos_embed"].shape == (1, 65, 16)
    corner, before = state["pos_embed"][0, 1], official["pos_embed"][0, 1]
    assert (corner - before).norm() < 0.5 * before.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {"model": {**s, "blocks.7.norm1.weight": s["cls_token"]}},
            "has besides blocks.7",
        ),
        (
            lambda s: {"model": {n: v for n, v in s.items() if n != "norm.weight"}},
            r"lacks norm\.weight\. Set encoder",
        ),
        (
            lambda s: {"model": {**s, "norm.weight": torch.zeros(5)}},
            r"norm\.weight \(5,\) instead of \(16,\)",
        ),
        (
            lambda s: {"model": {re.sub("^norm", "fc_norm", n): v for n, v in s.items()}},
            r"lacks norm\.bias, norm\.weight; has besides fc_norm\.bias, fc_norm\.weight",
        ),
        (
            lambda s: {"model": {**s, "pos_embed": s["pos_embed"][:, 1:]}},
            r"of CLS and of a square grid of patches, .*, got \(1, 16, 16\)",
        ),
        (lambda s: {"model": {**s, "pos_embed": s["pos_embed"][:, :14]}}, r"got \(1, 14, 16\)"),
        (lambda s: {"model": {**s, "pos_embed": s["pos_embed"][0]}}, r"got \(17, 16\)"),
        (lambda s: {"weights": s}, "under state_dict or model, got weights"),
        (lambda s: {**s, "epoch": 3}, r"under state_dict or model, got blocks.* and \d+ more\."),
        (lambda s: [1, 2], "checkpoint by name, got list"),
    ],
)
def test_read__says_what_does_not_fit(
    official: dict[str, Tensor],
    tiny: Pretrain,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    words: str,
) -> None:
    torch.save(change(official), tmp_path / "x.pth")
    with pytest.raises(DataError, match=words):
        read_encoder(tmp_path / "x.pth", tiny.encoder, image_size=16)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_read__says_that_a_file_is_damaged_or_absent(
    tiny: Pretrain, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UnreachableError, match=f"{name} cannot be read: No such file"):
        read_encoder(tmp_path / name, tiny.encoder, image_size=16)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="must be a checkpoint"):
        read_encoder(tmp_path / name, tiny.encoder, image_size=16)


@pytest.mark.parametrize("zipped", [True, False])
def test_read__says_so_wherever_a_file_is_cut(tiny: Pretrain, tmp_path: Path, zipped: bool) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"model": {"w": torch.ones(3)}}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.pth must be a checkpoint of .* values: ."):
            read_encoder(tmp_path / "cut.pth", tiny.encoder, image_size=16)


# Of plain pickles: an item of an empty stack, and a number of eight bytes with one.
ODD = {"no stack": b"\x80\x02.", "short number": b"\x80\x02G\x00"}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_read__says_that_a_file_is_odd(tiny: Pretrain, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.pth must be a checkpoint of .* values: ."):
        read_encoder(tmp_path / "odd.pth", tiny.encoder, image_size=16)


def test_checkpoint__is_a_reference_that_evaluations_start_from(
    official: dict[str, Tensor],
    encoder: VisionTransformer,
    tiny: Pretrain,
    tiny_place: Place,
    tmp_path: Path,
) -> None:
    torch.save({"model": official}, tmp_path / "mae.pth")
    config = Checkpoint(weights="mae", data=tiny.data, encoder=tiny.encoder)
    place = replace(tiny_place, data={**tiny_place.data, "mae": tmp_path / "mae.pth"})
    stage = run_checkpoint(
        config, seed=0, place=place, inputs=None, resume=None, should_stop=lambda: False
    )
    assert next(stage).step == 1
    with pytest.raises(StopIteration) as end:
        next(stage)
    (tmp_path / "out").mkdir()
    end.value.value.export(tmp_path / "out")
    loaded, description = load_encoder(tmp_path / "out")
    assert description == Description(tiny.encoder, tiny.data)
    images = torch.randn(2, 3, 16, 16)
    assert loaded(images).equal(encoder(images))
    absent = run_checkpoint(
        config, seed=0, place=tiny_place, inputs=None, resume=None, should_stop=lambda: False
    )
    with pytest.raises(UnreachableError, match=r"'mae' is not at hand.*--data mae=FILE"):
        next(absent)


def test_export__is_a_checkpoint_that_plain_timm_loads(tmp_path: Path) -> None:
    settings = Encoder(width=192, heads=3)
    config = Pretrain(encoder=settings)
    ours = build_student(config, 0).encoder.eval()
    export_encoder(tmp_path, Description(settings, config.data), student=timm_state(ours))
    plain = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, checkpoint_path=str(tmp_path / "student.safetensors")
    ).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (plain.forward_features(images) - ours(images)).abs().max() == 0


def test_export__can_be_read_as_a_checkpoint(
    encoder: VisionTransformer, tiny: Pretrain, tmp_path: Path
) -> None:
    save_file(timm_state(encoder), tmp_path / "student.safetensors")
    state = read_encoder(tmp_path / "student.safetensors", tiny.encoder, image_size=16)
    torch.testing.assert_close(state, timm_state(encoder), rtol=0, atol=0)
