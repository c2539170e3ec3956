"""What is hidden, and who chooses it."""

from dataclasses import dataclass
from typing import Literal

from hpm.rules import require

__all__ = ["Mask"]

_STEP_AT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What is hidden: `ratio` of the patches, of which `hard_share` by a `guide`.

    The guide is the teacher's predicted loss or, as AttMask does, the attention that its CLS token
    pays; it hides what is hardest (most attended) or, as a control, easiest. The `rest` is hidden
    at random: patch by patch, in blocks (BEiT), or in a regular grid (MAE's comparison).

    `ratio` and `hard_share` are constant, or [first, last] (official: [0, 0.5], easy-to-hard) along
    a `schedule`, which moves with every epoch (official) or, for runs of few epochs, with every
    step; the one called step jumps after `step_at` of the run. Patches are hidden in squares of
    `unit` by `unit` (SimMIM: 2). The encoder sees the visible ones alone (MAE) or, `as_tokens`, all
    of them, the hidden ones as mask tokens (BEiT, SimMIM, MaskFeat).
    """

    ratio: float | tuple[float, float] = 0.75
    hard_share: float | tuple[float, float] = (0.0, 0.5)
    schedule: Literal["linear", "cosine", "step"] = "linear"
    schedule_by: Literal["epoch", "step"] = "epoch"
    step_at: float = _STEP_AT
    guide: Literal["predicted-loss", "attention"] = "predicted-loss"
    prefer: Literal["hard", "easy"] = "hard"
    rest: Literal["random", "block", "grid"] = "random"
    unit: int = 1
    as_tokens: bool = False

    @property
    def ratio_range(self) -> tuple[float, float]:
        """First and last ratio."""
        return _pair(self.ratio)

    @property
    def hard_range(self) -> tuple[float, float]:
        """First and last hard share."""
        return _pair(self.hard_share)

    def __post_init__(self) -> None:
        require(
            (
                all(0 < ratio < 1 for ratio in self.ratio_range),
                "ratio",
                "must be a number in (0, 1) or two of them, [first, last], "
                f"got {_show(self.ratio)}.",
            ),
            (
                all(0 <= share <= 1 for share in self.hard_range),
                "hard_share",
                "must be a number in [0, 1] or two of them, [first, last], "
                f"got {_show(self.hard_share)}.",
            ),
            (0 < self.step_at < 1, "step_at", f"must be in (0, 1), got {self.step_at:g}."),
            (
                self.schedule == "step" or self.step_at == _STEP_AT,
                "step_at",
                f"must be left out where schedule is {self.schedule}, got {self.step_at:g}.",
            ),
            (self.unit >= 1, "unit", f"must be at least 1, got {self.unit}."),
        )


def _pair(held: float | tuple[float, float]) -> tuple[float, float]:
    return held if isinstance(held, tuple) else (held, held)


def _show(held: float | tuple[float, float]) -> str:
    return ", ".join(f"{share:g}" for share in dict.fromkeys(_pair(held)))
