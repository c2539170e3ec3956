"""What is drawn for a mask: a number for each unit of an image. The highest ones are hidden.

Letters: U units of an image, S of a side.
"""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from hpm.config import Pretrain
from hpm.schedules import at_step

__all__ = ["MaskNoise", "block_noise", "grid_noise"]

# BEiT: a block is at least 16 of 196 patches, its height 0.3 to 1/0.3 of its width.
_LEAST_BLOCK = 16 / 196
_ASPECT = log(1 / 0.3)


@dataclass(frozen=True, slots=True)
class MaskNoise:
    """The draws of a run with `epoch_steps` steps an epoch."""

    config: Pretrain
    epoch_steps: int

    def __call__(self, rng: np.random.Generator, step: int) -> NDArray[np.float32]:
        """[U] in [0, 1), for one image at a step (from 0)."""
        config, side = self.config, self.config.side // self.config.mask.unit
        match config.mask.rest:
            case "random":
                return rng.random(side**2, dtype=np.float32)
            case "grid":
                return grid_noise(rng, side)
            case "block":
                count = at_step(config, step, epoch_steps=self.epoch_steps).num_masked
                return block_noise(rng, side, count)
            case other:
                assert_never(other)


def grid_noise(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """[U] by which squares of 2 x 2 units are hidden alike: first all their last units, and so on.

    With 3 of 4 units hidden, this keeps every other unit of every other row, as in MAE's
    comparison of masks. Of equal units chance decides.
    """
    ranks_SS = np.tile([[0, 2], [3, 1]], (side // 2 + 1, side // 2 + 1))[:side, :side]
    noise_U = rng.random(side**2, dtype=np.float32)
    return (ranks_SS.ravel().astype(np.float32) + noise_U) / np.float32(4)


def block_noise(rng: np.random.Generator, side: int, count: int) -> NDArray[np.float32]:
    """[U] by which `count` units are hidden in rectangles (BEiT, algorithm 1).

    Rectangles are drawn until they cover so many; of the last one some are spared, by chance.
    """
    order_SS = np.zeros((side, side), dtype=np.float32)
    covered = 0
    while covered < count:
        fresh_SS = np.zeros((side, side), dtype=bool)
        fresh_SS[_rectangle(rng, side, count - covered)] = True
        fresh_SS &= order_SS == 0
        last = covered + int(fresh_SS.sum()) >= count
        order_SS[fresh_SS] = 1 if last else 2
        covered += int(fresh_SS.sum())
    noise_U = rng.random(side**2, dtype=np.float32)
    return (order_SS.ravel() + noise_U) / np.float32(3)


def _rectangle(rng: np.random.Generator, side: int, most: int) -> tuple[slice, slice]:
    least = max(1.0, _LEAST_BLOCK * side**2)
    size, shape, top, left = rng.random(4).tolist()
    area = least + (max(least, most) - least) * size
    aspect = exp(_ASPECT * (2 * shape - 1))
    height = min(side, max(1, round(sqrt(area * aspect))))
    width = min(side, max(1, round(sqrt(area / aspect))))
    y, x = int(top * (side - height + 1)), int(left * (side - width + 1))
    return slice(y, y + height), slice(x, x + width)
