"""How weights move: the optimizer's steps, and the teacher that trails them."""

from dataclasses import dataclass

from hpm.rules import at_least_one, require

__all__ = ["Ema", "Optim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ema:
    """The teacher's momentum: linear from `start` to `end` over `ramp_epochs`, then constant.

    The defaults are those of the official code, whatever the length of a run.
    """

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

    `accumulate` splits a batch into so many passes; `clip_norm` null means no clipping. The
    defaults are the official ones for 200 epochs, but for the 8 passes there.
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
