"""Checkpoints that others made: an encoder out of a file of HPM's, MAE's, timm's or our own.

The official HPM code keeps the student under `state_dict` and its average under `ema_state_dict`,
MAE one model under `model`; names may begin with `module.`. Decoders, mask tokens, a predictor and
a classifier are left aside.
"""

import argparse
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from hpm.config import Encoder, Role
from hpm.data.errors import DataError, UnreachableError
from hpm.hub import UNFIT
from hpm.model import VisionTransformer
from hpm.weights import timm_state

__all__ = ["read_encoder"]

_KEYS: Final[Mapping[Role, tuple[str, ...]]] = {
    "student": ("state_dict", "model"),
    "teacher": ("ema_state_dict",),
}
_ASIDE = re.compile(r"(decoder_|mask_token$|head\.)")


def read_encoder(
    path: Path, settings: Encoder, *, image_size: int, role: Role = "student"
) -> dict[str, Tensor]:
    """The state of an encoder, named as timm's, its positions resized to images of this size.

    Nothing in the file is executed.

    Raises:
        UnreachableError: the file is absent or refused.
        DataError: it is no checkpoint, has no such role, or its names or shapes are not those of
            the encoder.
    """
    held = _state(_read(path), path, role)
    state = {re.sub(r"^(module\.)+", "", name): value for name, value in held.items()}
    state = {name: value for name, value in state.items() if not _ASIDE.match(name)}
    with torch.device("meta"):
        wanted = timm_state(VisionTransformer(settings, image_size=image_size))
    _require_names(state, wanted, path)
    _require_positions(state["pos_embed"], path)
    if state["pos_embed"].shape[2] == settings.width:
        side = image_size // settings.patch_size
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"].float(), [side, side])
    _require_shapes(state, wanted, path)
    return {name: value.float() for name, value in state.items()}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # MAE's own training keeps its arguments beside the weights: plain values in a namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnreachableError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UNFIT as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{path} must be a checkpoint of tensors and plain values: {first}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must be a checkpoint by name, got {type(content).__name__}.")
    return content


def _state(content: Mapping[str, Any], path: Path, role: Role) -> Mapping[str, Tensor]:
    for key in _KEYS[role]:
        if isinstance(held := content.get(key), Mapping):
            return held
    if role == "student" and all(isinstance(value, Tensor) for value in content.values()):
        return content
    wanted, got = " or ".join(_KEYS[role]), _some(set(map(str, content)))
    raise DataError(f"{path} must hold the {role}'s weights under {wanted}, got {got}.")


def _require_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    differing = {"lacks": wanted.keys() - state.keys(), "has besides": state.keys() - wanted.keys()}
    if any(differing.values()):
        words = "; ".join(f"{verb} {_some(names)}" for verb, names in differing.items() if names)
        raise DataError(
            f"{path} must be of a plain vision transformer with a CLS token, as deep as the "
            f"encoder: it {words}. Set encoder to what the checkpoint is."
        )


def _require_positions(table: Tensor, path: Path) -> None:
    shape = tuple(table.shape)
    patches = shape[1] - 1 if len(shape) == 3 and shape[0] == 1 else 0
    if patches < 1 or isqrt(patches) ** 2 != patches:
        raise DataError(
            f"{path} must hold the positions (pos_embed) of CLS and of a square grid of patches, "
            f"(1, 1 + side * side, width), got {shape}. Use another checkpoint."
        )


def _require_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if state[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"{path} must have the sizes of the encoder, got {', '.join(wrong[:3])}{more}. "
            "Set encoder to what the checkpoint is."
        )


def _some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:5])
    return f"{first} and {len(names) - 5} more" if len(names) > 5 else first
