"""Stochastic depth whose coins are handed in, so that a sample's do not depend on who computes it.

Letters: B images, P branches of a network, two in each block.
"""

from typing import final

from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn

__all__ = ["DropPath", "hand_coins", "replace_drop_paths"]


@final
class DropPath(nn.Module):
    """Leaves a residual branch out for some samples of a batch, and weighs it more for the others.

    In training, `coins_B` must hold a number in [0, 1) for each sample: one below `rate` leaves
    the branch out.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.coins_B: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        """The branch's values [B, ...], 0 where it is left out."""
        if not self.training:
            return values
        assert self.coins_B is not None, "a drop path in training needs coins"
        kept_B = (self.coins_B >= self.rate).to(values.dtype) / (1 - self.rate)
        return values * kept_B.view(-1, *(1,) * (values.ndim - 1))


def replace_drop_paths(model: nn.Module) -> list[DropPath]:
    """Put these in the place of timm's, in the order of the model's modules."""
    found = []
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, TimmDropPath):
                setattr(parent, name, path := DropPath(child.drop_prob))
                found.append(path)
    return found


def hand_coins(paths: list[DropPath], coins_BP: Tensor) -> None:
    """Give each of the paths its column; there may be more columns than paths."""
    assert coins_BP.shape[1] >= len(paths), "each drop path needs a column of coins"
    for path, coins_B in zip(paths, coins_BP.T, strict=False):
        path.coins_B = coins_B
