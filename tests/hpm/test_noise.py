"""Every way to draw a mask: how many patches it hides, and in which shapes."""

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch

from hpm.config import Data, Encoder, Mask, Pretrain
from hpm.masking import draw_mask, pool_units, spread_units
from hpm.noise import MaskNoise, block_noise, grid_noise
from hpm.randomness import Purpose, generator
from hpm.schedules import at_step

CONFIG = Pretrain(data=Data(image_size=56), encoder=Encoder(patch_size=4))


def _rng(index: int = 0) -> np.random.Generator:
    return generator(Purpose.MASK, seed=0, index=index)


def _hidden(noise: np.ndarray, count: int) -> np.ndarray:
    mask = draw_mask(torch.from_numpy(noise)[None], None, num_masked=count, num_hard=0)
    side = round(noise.size**0.5)
    return mask.reshape(side, side).numpy()


@pytest.mark.parametrize("rest", ["random", "block", "grid"])
@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.6, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("side", [10, 14])
def test_noise__hides_exactly_the_ratio_whatever_the_strategy(
    rest: str, unit: int, ratio: float, side: int
) -> None:
    mask = Mask(rest=rest, unit=unit, ratio=ratio, hard_share=0.5)
    config = replace(CONFIG, data=Data(image_size=4 * side), mask=mask)
    now = at_step(config, 0, epoch_steps=1)
    draw = MaskNoise(config, epoch_steps=1)
    noise = torch.from_numpy(np.stack([draw(_rng(i), 0) for i in range(8)]))
    assert noise.dtype == torch.float32
    assert bool(noise.isfinite().all())
    score = torch.rand(8, side**2, generator=torch.Generator().manual_seed(0))
    units = draw_mask(
        noise, pool_units(score, unit), num_masked=now.num_masked, num_hard=now.num_hard
    )
    hidden = spread_units(units, unit).sum(dim=1)
    total = (side // unit) ** 2
    visible = floor(total * (1 - Fraction(str(ratio))))
    assert hidden.unique().tolist() == [(total - visible) * unit**2]


@pytest.mark.parametrize("rest", ["random", "block", "grid"])
def test_noise__is_an_images_own(rest: str) -> None:
    draw = MaskNoise(replace(CONFIG, mask=Mask(rest=rest, hard_share=0.0)), epoch_steps=1)
    assert np.array_equal(draw(_rng(3), 0), draw(_rng(3), 0))
    assert not np.array_equal(draw(_rng(3), 0), draw(_rng(4), 0))


def test_grid__keeps_every_other_patch_of_every_other_row() -> None:
    hidden = _hidden(grid_noise(_rng(), 14), 147)
    assert (~hidden[::2, ::2]).all()
    assert hidden.sum() == 147


def test_grid__of_half_is_a_chequerboard() -> None:
    hidden = _hidden(grid_noise(_rng(), 8), 32)
    rows, columns = np.indices((8, 8))
    assert np.array_equal(hidden, (rows + columns) % 2 == 1)


def test_block__hides_neighbours() -> None:
    def neighbours(hidden: np.ndarray) -> int:
        pairs = (hidden[1:] & hidden[:-1]).sum() + (hidden[:, 1:] & hidden[:, :-1]).sum()
        return int(pairs)

    blocks = [neighbours(_hidden(block_noise(_rng(i), 14, 78), 78)) for i in range(20)]
    chance = [neighbours(_hidden(_rng(i).random(196, dtype=np.float32), 78)) for i in range(20)]
    assert min(blocks) > max(chance)


@pytest.mark.parametrize("side", [2, 3, 8])
def test_block__ends_however_much_is_to_be_hidden(side: int) -> None:
    for count in range(1, side**2):
        assert _hidden(block_noise(_rng(count), side, count), count).sum() == count


def test_block__follows_a_ratio_that_moves() -> None:
    config = replace(CONFIG, epochs=40, mask=Mask(rest="block", ratio=(0.2, 0.8), hard_share=0.0))
    draw = MaskNoise(config, epoch_steps=1)
    for step in (0, 39):
        count = at_step(config, step, epoch_steps=1).num_masked
        noise = draw(_rng(), step)
        # What is drawn in rectangles has the higher two thirds of the numbers.
        assert (noise > 1 / 3).sum() >= count
    assert (draw(_rng(), 0) > 1 / 3).sum() < (draw(_rng(), 39) > 1 / 3).sum()


def test_units__are_hidden_whole_and_scored_by_their_mean() -> None:
    score = torch.arange(16.0)[None]
    assert pool_units(score, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    spread = spread_units(torch.tensor([[False, True, False, False]]), 2).reshape(4, 4)
    assert spread.nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
