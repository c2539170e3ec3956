"""What is reconstructed, and how far from it a reconstruction is."""

from dataclasses import dataclass
from typing import Literal

from hpm.rules import Rule, at_least_one, require

__all__ = ["Target"]

# MaskFeat's.
_HOG_BINS, _HOG_CELL = 9, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is reconstructed of each hidden patch.

    - `pixels`, raw, or `normalized-pixels`, within each patch.
    - `hog`: MaskFeat's histograms of oriented gradients, of cells of `hog_cell` pixels a side.
    - `ema`: what the run's own teacher makes of the whole image.
    - `teacher`: what a frozen model makes of it, any of timm's by name; of a transformer the
      tokens, of a convolutional network the map, of its stage or block `layer` (null: the last).
      `project` takes them through its head (CLIP: into the space that image and text share).
      `image_size` null is the size at which its grid is the student's.
    - `tokens`: which entry of a `codebook` is nearest to the teacher's features (without a teacher:
      to the normalised pixels), in BEiT's manner.

    `loss` is that of pixels and histograms; features are compared at unit length, as officially,
    and tokens by cross-entropy. With `precompute`, the teacher sees each whole image once; its
    features, kept as float16, are cropped as the image is.
    """

    kind: Literal["pixels", "normalized-pixels", "hog", "ema", "teacher", "tokens"] = "pixels"
    loss: Literal["mse", "l1", "smooth-l1"] = "mse"
    hog_bins: int = _HOG_BINS
    hog_cell: int = _HOG_CELL
    teacher: str | None = None
    layer: int | None = None
    project: bool = False
    image_size: int | None = None
    codebook: str | None = None
    precompute: bool = False

    def __post_init__(self) -> None:
        require(
            *at_least_one(self, "hog_bins", "hog_cell"),
            (
                self.kind in ("pixels", "normalized-pixels", "hog") or self.loss == "mse",
                "loss",
                f"must be left out for the target {self.kind}, which has one of its own, "
                f"got {self.loss}.",
            ),
            (
                self.kind != "teacher" or self.teacher is not None,
                "teacher",
                "must name a model of timm, such as vit_base_patch16_224.dino, got null.",
            ),
            (
                self.kind in ("teacher", "tokens") or self.teacher is None,
                "teacher",
                f"must be left out for the target {self.kind}, got {self.teacher}.",
            ),
            (
                (self.kind == "tokens") == (self.codebook is not None),
                "codebook",
                "must name a codebook for the target tokens and for no other, "
                f"got {self.codebook}.",
            ),
            *(
                self._of_histograms(name, usual)
                for name, usual in (("hog_bins", _HOG_BINS), ("hog_cell", _HOG_CELL))
            ),
            *(
                self._of_a_teacher(name)
                for name in ("layer", "project", "image_size", "precompute")
            ),
        )

    def _of_histograms(self, name: str, usual: int) -> Rule:
        held = getattr(self, name)
        return (
            self.kind == "hog" or held == usual,
            name,
            f"must be left out for the target {self.kind}, got {held}.",
        )

    def _of_a_teacher(self, name: str) -> Rule:
        held = getattr(self, name)
        return (
            self.teacher is not None or held is None or held is False,
            name,
            f"must be left out where target.teacher is, got {held}.",
        )
