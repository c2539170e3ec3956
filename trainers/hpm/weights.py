"""Encoders that go out as timm checkpoints, and come in again for an evaluation.

A folder of exported encoders holds `student.safetensors`, `teacher.safetensors` where there was a
teacher, and `encoder.json`, which says what they are and which images they were trained on. Each
of the files is a checkpoint of timm's plain `VisionTransformer`: ours has its names already, and
only the position embedding, which it computes, is added.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmEncoder
from torch import Tensor

from hpm.config import Data, Encoder, Role
from hpm.model import VisionTransformer

__all__ = ["Description", "export_encoder", "load_encoder", "timm_state"]


class Description(NamedTuple):
    """What an exported encoder is, and the images it was trained on."""

    encoder: Encoder
    data: Data


def timm_state(encoder: VisionTransformer) -> dict[str, Tensor]:
    """An encoder as the state of timm's: the CLS token has no position, so its row is zero."""
    table = torch.nn.functional.pad(encoder.positions_ND, (0, 0, 1, 0))[None]
    return {**encoder.state_dict(), "pos_embed": table}


def export_encoder(
    folder: Path,
    description: Description,
    *,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the states of encoders, named as timm's, and what they are, into an existing folder."""
    for role, state in (("student", student), ("teacher", teacher)):
        if state is not None:
            tensors = {name: value.contiguous() for name, value in state.items()}
            save_file(tensors, folder / f"{role}.safetensors")
    text = json.dumps(description._asdict(), default=asdict, indent=2)
    (folder / "encoder.json").write_text(text + "\n")


def load_encoder(
    folder: Path,
    *,
    role: Role = "student",
    image_size: int | None = None,
    drop_path: float = 0.0,
    classes: int = 0,
) -> tuple[TimmEncoder, Description]:
    """An exported encoder on the CPU, in evaluation mode, and what it is.

    It maps images to normalised tokens [B, 1+N, D], CLS first; its positions are resized where
    `image_size` is another than that of training. With `classes` it maps them to scores [B, C]:
    patch tokens are averaged, then normalised by a norm and weighed by a layer that are both new,
    which is the official form of fine-tuning. `drop_path` is that of the last block, and of the
    others in proportion.

    Raises:
        RuntimeError: the files are not those of an encoder as described.
    """
    document = json.loads((folder / "encoder.json").read_text())
    settings, data = Encoder(**document["encoder"]), Data(**document["data"])
    encoder = TimmEncoder(
        img_size=image_size or data.image_size,
        patch_size=settings.patch_size,
        embed_dim=settings.width,
        depth=settings.depth,
        num_heads=settings.heads,
        mlp_ratio=settings.mlp_ratio,
        drop_path_rate=drop_path,
        num_classes=classes,
        global_pool="avg" if classes else "",
    )
    state = load_file(folder / f"{role}.safetensors")
    grid = encoder.patch_embed.grid_size
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(grid), verbose=False)
    new = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    if classes:
        own = encoder.state_dict()
        state = {name: value for name, value in state.items() if not name.startswith("norm.")}
        state |= {name: own[name] for name in new}
    encoder.load_state_dict(state)
    return encoder.eval(), Description(settings, data)
