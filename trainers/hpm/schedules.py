"""What changes over a run, as plain numbers: learning rate, masks, the teacher's momentum."""

import math
from typing import NamedTuple, assert_never

from hpm.config import Mask, Optim, Pretrain

__all__ = [
    "Scheduled",
    "at_step",
    "ema_momentum",
    "learning_rate",
    "moved",
    "num_hard",
    "peak_learning_rate",
]


def peak_learning_rate(optim: Optim) -> float:
    """Learning rate after warm-up: the base rate is for a global batch of 256 (official, MAE's)."""
    return optim.base_lr * optim.batch_size / 256


def learning_rate(epoch: float, *, peak: float, warmup_epochs: float, epochs: float) -> float:
    """Linear from 0 to `peak`, then a half cosine back to 0; `epoch` counts fractions too.

    Official: per iteration, so the first one has a learning rate of 0.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if epoch >= epochs:
        return 0.0
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))


def moved(part: int, mask: Mask, between: tuple[float, float], *, parts: int) -> float:
    """A value that moves from the first to the last over the parts (from 0) of a run.

    Official: linear, and the parts are epochs; the value of the last one is the last.
    """
    first, last = between
    if first == last:
        return first
    done = (part + 1) / parts
    match mask.schedule:
        case "linear":
            pass
        case "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        case "step":
            done = float(done > mask.step_at)
        case other:
            assert_never(other)
    return first * (1.0 - done) + last * done


def num_hard(num_masked: int, share: float) -> int:
    """Hidden units that the guide chooses: the share, rounded down as officially."""
    return int(num_masked * share)


def ema_momentum(epoch: float, *, start: float, end: float, ramp_epochs: float) -> float:
    """The teacher's momentum: linear from `start`, and `end` from `ramp_epochs` on (official)."""
    if epoch >= ramp_epochs:
        return end
    return start + (end - start) * epoch / ramp_epochs


class Scheduled(NamedTuple):
    """What holds for one optimizer step; a unit is a square of patches that are hidden together."""

    learning_rate: float
    hard_share: float
    num_masked: int
    """Units."""
    num_hard: int
    """Units, of those that are hidden."""
    momentum: float


def at_step(config: Pretrain, step: int, *, epoch_steps: int) -> Scheduled:
    """The schedules at a step (from 0) of a run with `epoch_steps` steps an epoch.

    As officially, the learning rate moves with every step, the momentum with every epoch.
    """
    epoch, mask = step // epoch_steps, config.mask
    by_epoch = mask.schedule_by == "epoch"
    part, parts = (epoch, config.epochs) if by_epoch else (step, config.epochs * epoch_steps)
    share = moved(part, mask, mask.hard_range, parts=parts)
    num_masked = config.num_hidden(moved(part, mask, mask.ratio_range, parts=parts))
    return Scheduled(
        learning_rate=learning_rate(
            step / epoch_steps,
            peak=peak_learning_rate(config.optim),
            warmup_epochs=config.optim.warmup_epochs,
            epochs=config.epochs,
        ),
        hard_share=share,
        num_masked=num_masked,
        num_hard=num_hard(num_masked, share),
        momentum=ema_momentum(
            epoch, start=config.ema.start, end=config.ema.end, ramp_epochs=config.ema.ramp_epochs
        ),
    )
