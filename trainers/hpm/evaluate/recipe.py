"""How an evaluation that trains a network trains it."""

from dataclasses import dataclass
from typing import Literal

from hpm.rules import at_least_one, require

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """AdamW with a learning rate of base_lr * batch_size / 256, less by `layer_decay` a block down.

    `batch_size` is global, in `accumulate` passes. After a linear warm-up the rate falls to
    `min_lr` along a half cosine, along a line, or (`steps`) by a factor of 10 at 8/9 and again at
    26/27 of the run. `ema` is the decay of an average of the weights that is evaluated in their
    place (null: none). The defaults are the official fine-tuning of ViT-B/16.
    """

    epochs: int = 100
    warmup_epochs: float = 5.0
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    decay: Literal["cosine", "linear", "steps"] = "cosine"
    batch_size: int = 384
    accumulate: int = 1
    weight_decay: float = 0.05
    layer_decay: float = 0.8
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    ema: float | None = None
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        size, parts, clip, ema = self.batch_size, self.accumulate, self.clip_norm, self.ema
        require(
            *at_least_one(self, "epochs", "batch_size", "accumulate"),
            (
                parts < 1 or size % parts == 0,
                "batch_size",
                f"must be divisible by accumulate={parts}, got {size}.",
            ),
            (
                0 <= self.warmup_epochs <= self.epochs,
                "warmup_epochs",
                f"must be in [0, epochs={self.epochs}], got {self.warmup_epochs:g}.",
            ),
            (self.base_lr > 0, "base_lr", f"must be above 0, got {self.base_lr:g}."),
            (self.min_lr >= 0, "min_lr", f"must be 0 or more, got {self.min_lr:g}."),
            (
                self.weight_decay >= 0,
                "weight_decay",
                f"must be 0 or more, got {self.weight_decay:g}.",
            ),
            (
                0 < self.layer_decay <= 1,
                "layer_decay",
                f"must be in (0, 1], got {self.layer_decay:g}.",
            ),
            (all(0 <= b < 1 for b in self.betas), "betas", f"must be in [0, 1), got {self.betas}."),
            (clip is None or clip > 0, "clip_norm", f"must be above 0 or null, got {clip}."),
            (ema is None or 0 < ema < 1, "ema", f"must be in (0, 1) or null, got {ema}."),
        )
