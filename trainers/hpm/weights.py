"""Weights that come in and go out: official names to ours, and encoders as safetensors.

A folder of exported encoders holds `student.safetensors`, `teacher.safetensors` where there was a
teacher, and `encoder.json`, which says what they are and which images they were trained on.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from hpm.config import Data, Encoder
from hpm.model import VisionTransformer

__all__ = ["Description", "export_encoder", "from_official", "load_encoder"]

# Official name (anchored, as a pattern) to ours; positions are computed here, not stored.
_RENAMED = {
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
_COMPUTED = {"pos_embed", "decoder_pos_embed"}


class Description(NamedTuple):
    """What an exported encoder is, and the images it was trained on."""

    encoder: Encoder
    data: Data


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a `MaskedModel` from an official checkpoint's `model` (or any part of one).

    Raises:
        ValueError: a name that no official HPM model has.
    """
    return {_rename(name): value for name, value in state.items() if name not in _COMPUTED}


def export_encoder(
    folder: Path,
    description: Description,
    *,
    student: VisionTransformer,
    teacher: VisionTransformer | None = None,
) -> None:
    """Write the encoders, and what they are, into an existing folder."""
    for name, encoder in (("student", student), ("teacher", teacher)):
        if encoder is not None:
            tensors = {key: value.contiguous() for key, value in encoder.state_dict().items()}
            save_file(tensors, folder / f"{name}.safetensors")
    text = json.dumps(description._asdict(), default=asdict, indent=2)
    (folder / "encoder.json").write_text(text + "\n")


def load_encoder(
    folder: Path, *, role: Literal["student", "teacher"] = "student"
) -> tuple[VisionTransformer, Description]:
    """An exported encoder on the CPU, in evaluation mode, and what it is."""
    document = json.loads((folder / "encoder.json").read_text())
    description = Description(Encoder(**document["encoder"]), Data(**document["data"]))
    encoder = VisionTransformer(description.encoder, image_size=description.data.image_size)
    encoder.load_state_dict(load_file(folder / f"{role}.safetensors"))
    return encoder.eval(), description


def _rename(name: str) -> str:
    for pattern, ours in _RENAMED.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", ours, name)
    raise ValueError(
        f"Names must be those of an official HPM checkpoint, got {name!r}. "
        "Pass the checkpoint's 'model' entry."
    )
