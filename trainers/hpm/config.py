"""Every setting of pretraining: frozen dataclasses, their defaults, and the rules between fields.

The defaults are the official scripts' (ViT-B/16, 200 epochs). A field here is science: it changes
what is computed, so it is part of a run's identity. Where and how fast a run goes is not here.
"""

from dataclasses import dataclass, field
from typing import Literal

from hpm.rules import Rule, at_least_one, require

__all__ = [
    "Data",
    "Decoder",
    "Ema",
    "Encoder",
    "Mask",
    "Optim",
    "Predictor",
    "Pretrain",
    "Target",
    "fits",
    "min_crop_rule",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Which images, and how a training view is drawn from one (official: crop 0.2 to 1, flip)."""

    name: str = "imagenet"
    image_size: int = 224
    min_crop: float = 0.2
    flip: bool = True

    def __post_init__(self) -> None:
        require(
            (self.image_size >= 1, "image_size", f"must be at least 1, got {self.image_size}."),
            min_crop_rule(self.min_crop),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A plain vision transformer."""

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        require(
            *at_least_one(self, "patch_size", "width", "depth", "heads"),
            (self.mlp_ratio > 0, "mlp_ratio", f"must be above 0, got {self.mlp_ratio:g}."),
            *_attention(self.width, self.heads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The reconstructor's blocks; the loss predictor has as many of its own."""

    width: int = 512
    depth: int = 8
    heads: int = 16

    def __post_init__(self) -> None:
        require(*at_least_one(self, "width", "depth", "heads"), *_attention(self.width, self.heads))


def _attention(width: int, heads: int) -> list[Rule]:
    if width < 1 or heads < 1:
        return []
    return [
        (width % heads == 0, "width", f"must be divisible by heads={heads}, got {width}."),
        (width % 4 == 0, "width", f"must be divisible by 4 (sin-cos positions), got {width}."),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What is hidden: `ratio` of the patches, of which `hard_share` by predicted loss.

    `hard_share` is constant, or [first, last] and linear in between (official: [0, 0.5],
    easy-to-hard), moving with every epoch (official) or, for runs of few epochs, with every step.
    `prefer` picks the hardest patches or, as a control, the easiest.
    """

    ratio: float = 0.75
    hard_share: float | tuple[float, float] = (0.0, 0.5)
    schedule_by: Literal["epoch", "step"] = "epoch"
    prefer: Literal["hard", "easy"] = "hard"

    @property
    def hard_range(self) -> tuple[float, float]:
        """First and last hard share."""
        share = self.hard_share
        return share if isinstance(share, tuple) else (share, share)

    def __post_init__(self) -> None:
        shares = ", ".join(f"{share:g}" for share in dict.fromkeys(self.hard_range))
        require(
            (0 < self.ratio < 1, "ratio", f"must be in (0, 1), got {self.ratio:g}."),
            (
                all(0 <= share <= 1 for share in self.hard_range),
                "hard_share",
                f"must be a number in [0, 1] or two of them, [first, last], got {shares}.",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is reconstructed: raw pixels, or pixels normalised within each patch."""

    kind: Literal["pixels", "normalized-pixels"] = "pixels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """How the loss predictor is trained: on pairs (BCE), on values (MSE), or not there (MAE)."""

    objective: Literal["relative", "absolute", "none"] = "relative"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ema:
    """The teacher's momentum: linear from `start` to `end` over `ramp_epochs`, then constant."""

    start: float = 0.999
    end: float = 0.9999
    ramp_epochs: float = 100.0

    def __post_init__(self) -> None:
        require(
            (0 <= self.start <= 1, "start", f"must be in [0, 1], got {self.start:g}."),
            (0 <= self.end <= 1, "end", f"must be in [0, 1], got {self.end:g}."),
            (self.ramp_epochs >= 0, "ramp_epochs", f"must be 0 or more, got {self.ramp_epochs:g}."),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """AdamW; lr = base_lr * batch_size / 256. `batch_size` is global: images per optimizer step.

    `accumulate` splits a batch into so many passes; `clip_norm` null means no clipping.
    """

    base_lr: float = 1.5e-4
    batch_size: int = 2048
    accumulate: int = 1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_epochs: float = 40.0
    clip_norm: float | None = 5.0

    def __post_init__(self) -> None:
        size, parts, clip = self.batch_size, self.accumulate, self.clip_norm
        require(
            *at_least_one(self, "batch_size", "accumulate"),
            (
                parts < 1 or size % parts == 0,
                "batch_size",
                f"must be divisible by accumulate={parts}, got {size}.",
            ),
            (self.base_lr > 0, "base_lr", f"must be above 0, got {self.base_lr:g}."),
            (
                self.weight_decay >= 0,
                "weight_decay",
                f"must be 0 or more, got {self.weight_decay:g}.",
            ),
            (all(0 <= b < 1 for b in self.betas), "betas", f"must be in [0, 1), got {self.betas}."),
            (
                self.warmup_epochs >= 0,
                "warmup_epochs",
                f"must be 0 or more, got {self.warmup_epochs:g}.",
            ),
            (clip is None or clip > 0, "clip_norm", f"must be above 0 or null, got {clip}."),
        )


def min_crop_rule(share: float) -> Rule:
    """The rule that a crop is some of an image, or all of it."""
    return 0 < share <= 1, "min_crop", f"must be in (0, 1], got {share:g}."


def fits(data: Data, encoder: Encoder) -> Rule:
    """The rule that an image is a whole number of patches."""
    size, patch = data.image_size, encoder.patch_size
    sentence = f"must be divisible by encoder.patch_size={patch}, got {size}."
    return size % patch == 0, "data.image_size", sentence


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
    epochs: int = 200
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return (self.data.image_size // self.encoder.patch_size) ** 2

    @property
    def num_masked(self) -> int:
        """Hidden patches of one image (official: all but the floor of what stays visible)."""
        return self.num_patches - int(self.num_patches * (1 - self.mask.ratio))

    def __post_init__(self) -> None:
        size, patch = self.data.image_size, self.encoder.patch_size
        hidden, patches = self.num_masked, self.num_patches
        require(
            (self.epochs >= 1, "epochs", f"must be at least 1, got {self.epochs}."),
            fits(self.data, self.encoder),
            (
                size % patch != 0 or 0 < hidden < patches,
                "mask.ratio",
                f"must hide at least one patch of {patches} and leave one visible, "
                f"got {self.mask.ratio:g}.",
            ),
            (
                self.predictor.objective != "none" or max(self.mask.hard_range) == 0,
                "mask.hard_share",
                "must be 0 without a loss predictor (predictor.objective: none), "
                f"got {self.mask.hard_share}.",
            ),
            (
                self.optim.warmup_epochs <= self.epochs,
                "optim.warmup_epochs",
                f"must not exceed epochs={self.epochs}, got {self.optim.warmup_epochs:g}.",
            ),
        )
