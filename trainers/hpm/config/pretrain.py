"""One pretraining run, and the rules between its parts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor
from typing import Literal

from hpm.config.data import Data
from hpm.config.mask import Mask
from hpm.config.network import Decoder, Encoder, Predictor
from hpm.config.optim import Ema, Optim
from hpm.config.target import Target
from hpm.rules import Rule, at_least_one, require

__all__ = ["Pretrain", "Watch", "fits"]


def fits(data: Data, encoder: Encoder) -> Rule:
    """The rule that an image is a whole number of patches."""
    size, patch = data.image_size, encoder.patch_size
    sentence = f"must be divisible by encoder.patch_size={patch}, got {size}."
    return size % patch == 0, "data.image_size", sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How training is looked at: `times` times, evenly, and at the ends of these `epochs`.

    Of each of the `images`, of the validation split, the reconstruction's loss is averaged over
    `masks` masks, random whatever the run's are (paper, Figure 2: 10), and compared with the
    predicted one; `panels` of them are drawn. Of `epochs`, 0.5 is the middle of the first one.
    """

    times: int = 10
    epochs: tuple[float, ...] = ()
    images: int = 64
    masks: int = 10
    panels: int = 8

    def __post_init__(self) -> None:
        require(
            (self.times >= 0, "times", f"must be 0 or more, got {self.times}."),
            *at_least_one(self, "images", "masks"),
            (
                1 <= self.panels <= self.images,
                "panels",
                f"must be in [1, images={self.images}], got {self.panels}.",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrain:
    """One pretraining run."""

    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    decoder: Decoder = field(default_factory=Decoder)
    mask: Mask = field(default_factory=Mask)
    target: Target = field(default_factory=Target)
    predictor: Predictor = field(default_factory=Predictor)
    ema: Ema = field(default_factory=Ema)
    optim: Optim = field(default_factory=Optim)
    watch: Watch = field(default_factory=Watch)
    epochs: int = 200
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    @property
    def side(self) -> int:
        """Patches of one row of an image."""
        return self.data.image_size // self.encoder.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.side**2

    @property
    def num_units(self) -> int:
        """Squares of patches that are hidden together."""
        return (self.side // self.mask.unit) ** 2

    def num_hidden(self, ratio: float) -> int:
        """Hidden units of one image (official: all but the floor of what stays visible)."""
        # Of 100 units 0.9 leaves 10, but 100 * (1 - 0.9) is 9.999999999999998.
        return self.num_units - floor(self.num_units * (1 - ratio) + 1e-9)

    @property
    def needs_teacher(self) -> bool:
        """Whether the run trails a teacher: some mask or target depends on it."""
        return max(self.mask.hard_range) > 0 or self.target.kind == "ema"

    def __post_init__(self) -> None:
        require(
            (self.epochs >= 1, "epochs", f"must be at least 1, got {self.epochs}."),
            fits(self.data, self.encoder),
            *self._mask_rules(),
            *self._network_rules(),
            (
                self.optim.warmup_epochs <= self.epochs,
                "optim.warmup_epochs",
                f"must not exceed epochs={self.epochs}, got {self.optim.warmup_epochs:g}.",
            ),
            (
                all(0 < epoch <= self.epochs for epoch in self.watch.epochs),
                "watch.epochs",
                f"must be in (0, epochs={self.epochs}], got {self.watch.epochs}.",
            ),
        )

    def _mask_rules(self) -> Iterator[Rule]:
        mask, side = self.mask, self.side
        whole = self.data.image_size % self.encoder.patch_size == 0
        even = mask.unit >= 1 and side % mask.unit == 0
        yield (
            not whole or even,
            "mask.unit",
            f"must divide the {side} patches of an image's side, got {mask.unit}.",
        )
        hidden = [self.num_hidden(ratio) for ratio in mask.ratio_range] if whole and even else []
        yield (
            all(0 < count < self.num_units for count in hidden),
            "mask.ratio",
            f"must hide at least one patch of {self.num_units if even else side**2} and leave one "
            f"visible, got {mask.ratio}.",
        )
        least = min(hidden, default=2) * mask.unit**2
        yield (
            self.predictor.objective == "none" or least != 1,
            "mask.ratio",
            "must hide at least two patches throughout where there is a loss predictor, for it "
            f"compares those of an image, got {mask.ratio}. Or set predictor.objective to none.",
        )
        yield (
            self.predictor.objective != "none"
            or mask.guide == "attention"
            or max(mask.hard_range) == 0,
            "mask.hard_share",
            "must be 0 without a loss predictor (predictor.objective: none), "
            f"got {mask.hard_share}.",
        )

    def _network_rules(self) -> Iterator[Rule]:
        decoder, predictor, target = self.decoder, self.predictor, self.target
        yield (
            decoder.depth > 0 or self.mask.as_tokens,
            "decoder.depth",
            "must be at least 1 where the encoder sees no mask tokens (mask.as_tokens: false), for "
            "nothing else would stand for what is hidden, got 0.",
        )
        width, heads = predictor.width or decoder.width, predictor.heads or decoder.heads
        fits_heads = predictor.objective == "none" or (width % heads == 0 and width % 4 == 0)
        yield (
            predictor.width is None or fits_heads,
            "predictor.width",
            f"must be divisible by its heads ({heads}) and by 4, got {width}.",
        )
        # Without a width of its own it has the reconstructor's, which divides by 4.
        yield (
            predictor.width is not None or fits_heads,
            "predictor.heads",
            f"must divide the predictor's width, which is decoder.width={width}, got {heads}.",
        )
        yield (
            predictor.objective == "none" or predictor.shares != "blocks" or decoder.depth > 0,
            "predictor.shares",
            "must not be blocks where the reconstructor has none (decoder.depth: 0).",
        )
        patch, cell = self.encoder.patch_size, target.hog_cell
        yield (
            target.kind != "hog" or patch % max(cell, 1) == 0,
            "target.hog_cell",
            f"must divide encoder.patch_size={patch}, got {cell}.",
        )
