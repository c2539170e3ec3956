"""Teachers that others trained: any model of timm, looked at and never changed.

Its grid is laid on the student's: by the size of its input where that is free, else several of its
cells are averaged into one patch. Letters: B images, N patches, D features, G cells of a side of
the teacher's grid, K entries of a codebook.
"""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm import create_model
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from hpm.config import Pretrain
from hpm.data.errors import DataError, reading
from hpm.data.views import IMAGENET_MEAN, IMAGENET_STD
from hpm.hub import PACKAGED, UNFIT, find_file, find_weights
from hpm.progress import Place

__all__ = ["FrozenTeacher", "load_codebook"]

# What tells the layout of a package's file from timm's; its weights are for pixels less 127, over
# 128.
_OWN_LAYOUT = "_conv_stem.weight"
_OWN_SCALE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


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
    def load(cls, config: Pretrain, place: Place, device: torch.device) -> Self:
        """The teacher of a run.

        Raises:
            DataError: its weights are not at hand or not its own, or its grid cannot be aligned.
        """
        name, project = config.target.teacher, config.target.project
        assert name is not None
        path = find_weights(name, place)
        outline = _outline(name)
        if project and not isinstance(getattr(outline, "head", None), nn.Linear):
            raise DataError(
                f"target.project needs a teacher with a linear head on its tokens, {name} has "
                "none. Leave it out."
            )
        layer = _layer(config, outline)
        image_size, cells = _align(config, int(outline.feature_info[layer]["reduction"]))
        model = _filled(name, outline, path, image_size=image_size)
        return cls(
            width=_width(config, model, layer, image_size=image_size, cells=cells),
            model=model.to(device),
            layer=layer,
            project=project,
            image_size=image_size,
            cells=cells,
            scale=_scale(model, device),
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
            return _map(self.model, own_BCHW, self.layer, project=self.project).float()


def load_codebook(config: Pretrain, place: Place, device: torch.device, *, width: int) -> Tensor:
    """The codebook [K, D] of a run.

    Raises:
        DataError: it is not at hand, or no tensor `codebook` of this width.
    """
    name = config.target.codebook
    assert name is not None
    path = find_file(name, place)
    try:
        with reading(path):
            codebook = load_file(path).get("codebook")
    except SafetensorError as error:
        raise DataError(f"{path} must be a whole safetensors file: {error}.") from error
    shape = None if codebook is None else tuple(codebook.shape)
    if codebook is None or codebook.ndim != 2 or codebook.shape[1] != width:
        raise DataError(
            f"{path} must hold a tensor `codebook` of K rows of {width} values, got {shape}."
        )
    return codebook.float().to(device)


def _outline(name: str) -> Any:
    """The model as timm makes it, but without numbers."""
    try:
        with torch.device("meta"):
            return create_model(name)
    except UNFIT as error:
        raise DataError(f"{name} cannot be a teacher: {_words(error)}.") from error


def _layer(config: Pretrain, outline: Any) -> int:
    last, asked = len(outline.feature_info) - 1, config.target.layer
    if asked is not None and not 0 <= asked <= last:
        raise DataError(
            f"target.layer must be in 0..{last} for {config.target.teacher}, got {asked}."
        )
    return last if asked is None else asked


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


def _filled(name: str, outline: Any, path: Path, *, image_size: int) -> Any:
    """The model with the weights of a file, on the CPU; nothing in the file is executed."""
    # What timm would take, or fetch, in the place of a file without weights.
    elsewhere = {"file": None, "url": "", "hf_hub_id": None}
    fixed = outline.pretrained_cfg["fixed_input_size"]
    size: dict[str, Any] = {"img_size": image_size} if fixed else {}
    with reading(path):
        try:
            state = load_state_dict(str(path), weights_only=True)
            if not state:
                raise ValueError("it has none")
            overlay: dict[str, Any] = {"state_dict": state, "custom_load": False, **elsewhere}
            if outline.pretrained_cfg["architecture"] in PACKAGED and _OWN_LAYOUT in state:
                named = dict(zip(outline.state_dict(), state.values(), strict=True))
                overlay |= {"state_dict": named, **_OWN_SCALE}
            model = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **size)
        except UNFIT as error:
            raise DataError(
                f"{path} must hold the weights of {name}, for images of {image_size} pixels: "
                f"{_words(error)}."
            ) from error
    return model.eval().requires_grad_(False)


def _map(model: Any, own_BCHW: Tensor, layer: int, *, project: bool) -> Tensor:
    """[B, D, G, G] of images as the model wants them."""
    (map_BDGG,) = model.forward_intermediates(
        own_BCHW, indices=[layer], norm=True, stop_early=True, intermediates_only=True
    )
    if project:
        map_BDGG = model.head(map_BDGG.movedim(1, 3)).movedim(3, 1)
    assert isinstance(map_BDGG, Tensor)
    return map_BDGG


@torch.no_grad()
def _width(config: Pretrain, model: Any, layer: int, *, image_size: int, cells: int) -> int:
    """Features of a cell, once the map of an image is seen to have the cells that it must have."""
    name, side = config.target.teacher, config.side
    grey_1CHW = torch.zeros(1, 3, image_size, image_size)
    try:
        width, *grid = _map(model, grey_1CHW, layer, project=config.target.project).shape[1:]
    except UNFIT as error:
        raise DataError(
            f"{name} must take images of {image_size} pixels: {_words(error)}. Set "
            "target.image_size to what it was made for, or name another teacher."
        ) from error
    if grid != [side * cells] * 2:
        raise DataError(
            f"The map of {name} must have {side * cells} x {side * cells} cells for the student's "
            f"{side} x {side} patches, got {' x '.join(map(str, grid))} at {image_size} pixels. "
            "Choose another target.layer or target.image_size, or another teacher."
        )
    return width


def _words(error: BaseException) -> str:
    if isinstance(error.__cause__, UnpicklingError):
        # timm's own words advise to execute what the file holds.
        return "it is no checkpoint of tensors and plain values alone"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _scale(model: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    mean_C11, std_C11 = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
    return mean_C11, std_C11
