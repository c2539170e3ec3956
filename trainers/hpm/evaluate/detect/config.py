"""Every setting of the evaluation `detect`, and what must be installed for it.

Nothing here loads torch, torchvision or pycocotools.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import ClassVar, Literal, final

from hpm.config import Encoder, Role
from hpm.evaluate.recipe import Recipe
from hpm.rules import at_least_one, require

__all__ = ["Detect", "DetectData", "MissingPackageError", "VitDetRecipe", "missing"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VitDetRecipe(Recipe):
    """A recipe whose defaults are ViTDet's with Mask R-CNN and ViT-B (detectron2, projects/ViTDet).

    Its rate of 1e-4 for 64 images is `base_lr` for 256; its warm-up of 250 iterations is 0.136
    epochs of COCO's 117,266 training images that have an object. A type of its own, so that a study
    that sets one of these keeps the others.
    """

    warmup_epochs: float = 0.136
    base_lr: float = 4e-4
    min_lr: float = 0.0
    decay: Literal["cosine", "linear", "steps"] = "steps"
    batch_size: int = 64
    weight_decay: float = 0.1
    layer_decay: float = 0.7


class MissingPackageError(ImportError):
    """A package that an evaluation needs is not installed here; a sentence for people."""

    retry: ClassVar[bool] = False


def missing() -> str | None:
    """What to install before `detect` can run here; None where nothing is missing."""
    if find_spec("pycocotools") is not None:
        return None
    return (
        "detect needs the package pycocotools, which is not installed here. "
        "Install it: pip install 'hpm-ablation[detection]' (or pip install pycocotools)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectData:
    """Another data set than the encoder's: images whose objects have boxes and masks."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """Mask R-CNN on a simple feature pyramid over the encoder, all of it trained.

    In training an image is scaled by a factor from [min_scale, max_scale] of what makes its longer
    side `image_size`, then cropped and padded to that square (large-scale jitter). `channels` are
    those of the pyramid and the heads, `convolutions` those of the box head and of the mask head,
    before which comes, for boxes, a layer of `box_width`. A step learns from `anchors` anchors and
    `regions` regions of each image, chosen from about `proposals` that the first half of the
    detector proposes. `drop_path` is that of the encoder's last block. `data` null means the data
    set that the encoder was trained on. The defaults are ViTDet's for COCO and ViT-B.
    """

    data: DetectData | None = None
    role: Role = "student"
    image_size: int = 1024
    min_scale: float = 0.1
    max_scale: float = 2.0
    flip: bool = True
    drop_path: float = 0.1
    channels: int = 256
    convolutions: int = 4
    box_width: int = 1024
    anchors: int = 256
    regions: int = 512
    proposals: int = 1000
    optim: VitDetRecipe = field(default_factory=VitDetRecipe)

    def __post_init__(self) -> None:
        low, high = self.min_scale, self.max_scale
        require(
            *at_least_one(self, "image_size", "channels", "box_width", "proposals"),
            (0 < low <= high, "min_scale", f"must be in (0, max_scale={high:g}], got {low:g}."),
            (self.anchors >= 2, "anchors", f"must be at least 2, got {self.anchors}."),
            # A quarter of them may lie on objects.
            (self.regions >= 4, "regions", f"must be at least 4, got {self.regions}."),
            (
                self.convolutions >= 0,
                "convolutions",
                f"must be 0 or more, got {self.convolutions}.",
            ),
            (
                0 <= self.drop_path < 1,
                "drop_path",
                f"must be in [0, 1), got {self.drop_path:g}.",
            ),
        )

    def require(self, encoder: Encoder) -> None:
        """See that the maps over an encoder's patches have whole pixels in each of their cells.

        Raises:
            ConfigError: images are no whole number of times four of its patches, or a quarter of a
                patch is no whole number of pixels.
        """
        size, patch = self.image_size, encoder.patch_size
        require(
            (
                size % (4 * patch) == 0,
                "image_size",
                f"must be divisible by {4 * patch}, four patches of the encoder, got {size}.",
            ),
            (
                patch % 4 == 0,
                "encoder.patch_size",
                f"must be divisible by 4, for the finest map quarters patches, got {patch}.",
            ),
        )
