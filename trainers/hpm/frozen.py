"""Teachers that others trained: any model of timm, looked at and never changed.

Its grid is laid on the student's: by the size of its input where that is free, else several of its
cells are averaged into one patch. Letters: B images, N patches, D features, K entries of a
codebook.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm import create_model
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from hpm.config import Pretrain
from hpm.data.errors import DataError, UnreachableError
from hpm.data.views import IMAGENET_MEAN, IMAGENET_STD
from hpm.distributed import this_worker
from hpm.hub import PACKAGED, find_file, find_weights
from hpm.progress import Place

__all__ = ["FrozenTeacher", "load_codebook"]

# The package's own: pixels less 127, over 128.
_PACKAGED_SCALE = (127 / 255, 128 / 255)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTeacher:
    """A function from images, normalised as the student's, to features of the student's patches."""

    model: Any
    layer: int
    project: bool
    width: int
    image_size: int
    cells: int
    """Of a patch's side."""
    scale: tuple[Tensor, Tensor]
    """Mean and deviation, [3, 1, 1], by which its own images are normalised."""
    precision: str

    @classmethod
    def load(cls, config: Pretrain, place: Place) -> Self:
        """The teacher of a run, on the worker's device.

        Raises:
            DataError: its weights are not at hand or not its own, or its grid cannot be aligned.
        """
        settings, device = config.target, this_worker().device
        assert settings.teacher is not None
        path = find_weights(settings.teacher, place)
        outline = _create(settings.teacher, device="meta")
        layers = outline.feature_info
        layer = len(layers) - 1 if settings.layer is None else settings.layer
        if not 0 <= layer < len(layers):
            raise DataError(
                f"target.layer must be in 0..{len(layers) - 1} for {settings.teacher}, got {layer}."
            )
        stride = int(layers[layer]["reduction"])
        image_size, cells = _align(config, stride)
        model = _filled(settings.teacher, path, image_size=image_size)
        width = int(layers[layer]["num_chs"])
        if settings.project:
            width = _projected(model, settings.teacher)
        return cls(
            model=model.to(device).eval().requires_grad_(False),
            layer=layer,
            project=settings.project,
            width=width,
            image_size=image_size,
            cells=cells,
            scale=_scale(model, path, device),
            precision=config.precision,
        )

    def features(self, images_BCHW: Tensor) -> Tensor:
        """[B, N, D] float32: of each patch of the student, in reading order."""
        return avg_pool2d(self.map(images_BCHW), self.cells).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def map(self, images_BCHW: Tensor) -> Tensor:
        """[B, D, G, G] float32: of each cell of its own grid."""
        device = images_BCHW.device
        mean, std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        plain_BCHW = (images_BCHW * std + mean).clamp(0, 1)
        size = (self.image_size, self.image_size)
        plain_BCHW = interpolate(plain_BCHW, size, mode="bicubic", antialias=True)
        own_BCHW = (plain_BCHW - self.scale[0]) / self.scale[1]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            (map_BDHW,) = self.model.forward_intermediates(
                own_BCHW, indices=[self.layer], norm=True, intermediates_only=True
            )
            if self.project:
                map_BDHW = self.model.head(map_BDHW.movedim(1, 3)).movedim(3, 1)
        features: Tensor = map_BDHW.float()
        return features


def load_codebook(config: Pretrain, place: Place, *, width: int) -> Tensor:
    """The codebook [K, D] of a run, on the worker's device.

    Raises:
        DataError: it is not at hand, or no tensor `codebook` of this width.
    """
    name = config.target.codebook
    assert name is not None
    path = find_file(name, place)
    try:
        codebook = load_file(path).get("codebook")
    except (OSError, SafetensorError) as error:
        raise UnreachableError(f"{path} must be a readable safetensors file: {error}.") from error
    shape = None if codebook is None else tuple(codebook.shape)
    if codebook is None or codebook.ndim != 2 or codebook.shape[1] != width:
        raise DataError(
            f"{path} must hold a tensor `codebook` of K rows of {width} values, got {shape}."
        )
    return codebook.float().to(this_worker().device)


def _create(name: str, **arguments: Any) -> Any:
    with torch.device(arguments.pop("device", "cpu")):
        return create_model(name, **arguments)


def _align(config: Pretrain, stride: int) -> tuple[int, int]:
    """The teacher's image size, and how many of its cells a patch's side has."""
    side, asked = config.side, config.target.image_size
    if asked is None:
        return side * stride, 1
    cells, left = divmod(asked, side * stride)
    if cells < 1 or left:
        raise DataError(
            f"target.image_size must be a multiple of {side * stride}, so that the cells of "
            f"{config.target.teacher} (of {stride} pixels) fall into the student's {side} x {side} "
            f"patches, got {asked}. Set it to null, or to {max(1, cells) * side * stride}."
        )
    return asked, cells


def _filled(name: str, path: Path, *, image_size: int) -> Any:
    try:
        state = load_state_dict(str(path))
        if PACKAGED.get(name, "-") in path.parts:
            state = dict(
                zip(_create(name, device="meta").state_dict(), state.values(), strict=True)
            )
        # Transformers have a grid of positions for one size of images, convolutions none.
        fixed = hasattr(_create(name, device="meta"), "pos_embed")
        size = {"img_size": image_size} if fixed else {}
        overlay = {"state_dict": state, "custom_load": False}
        return _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **size)
    except (RuntimeError, KeyError, ValueError, OSError, SafetensorError) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{path} must hold the weights of {name}: {words}") from error


def _projected(model: Any, name: str) -> int:
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise DataError(
            f"target.project needs a teacher with a linear head on its tokens, {name} has none. "
            "Leave it out."
        )
    return head.out_features


def _scale(model: Any, path: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    if PACKAGED.get(model.pretrained_cfg["architecture"], "-") in path.parts:
        mean, std = ((value,) * 3 for value in _PACKAGED_SCALE)
    mean_C11, std_C11 = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
    return mean_C11, std_C11
