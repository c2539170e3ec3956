"""Which regions of an image a detector learns from, and what it sees of each.

Both take the place of torchvision's own: its samples follow its global generator, and its RoIAlign
has no deterministic gradient on CUDA without a compiler. Letters: B images, A anchors or regions of
an image, K regions of all images, C channels, P side of what is pooled.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

__all__ = ["RegionPool", "Sampler"]

_SAMPLES = 2
"""Sampled points of a bin, along each side."""

_CANONICAL = 14
"""A region of so many patches a side is pooled from the map of stride p: 224 pixels at p = 16."""


@final
class Sampler:
    """A random choice of `size` anchors or regions, up to a `share` of them on objects.

    It is drawn for each image from a seed of its own, so it does not depend on who computes it.
    """

    def __init__(self, size: int, share: float) -> None:
        self.size = size
        self.share = share
        self.seeds_B: Sequence[int] = ()

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks [A] of the chosen ones on objects (labels above 0) and on none (0), by image."""
        pairs = [
            self._choose(labels_A, seed)
            for labels_A, seed in zip(labels, self.seeds_B, strict=True)
        ]
        return [on for on, _ in pairs], [off for _, off in pairs]

    def _choose(self, labels_A: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        order_A = torch.randperm(len(labels_A), generator=draws).to(labels_A.device)
        shuffled_A = labels_A[order_A]
        on = order_A[shuffled_A >= 1][: int(self.size * self.share)]
        off = order_A[shuffled_A == 0][: self.size - len(on)]
        masks = torch.zeros(2, len(labels_A), dtype=torch.bool, device=labels_A.device)
        masks[0, on] = True
        masks[1, off] = True
        return masks[0], masks[1]


@final
class RegionPool(nn.Module):
    """RoIAlign on the four finer maps: from each bin of a region the mean of 2 x 2 points.

    A region's map follows from its size (FPN, equation 1). Points lie as in Mask R-CNN's aligned
    form, half a pixel lower than in torchvision's default.
    """

    def __init__(self, side: int, patch_size: int) -> None:
        super().__init__()
        self.output_size = (side, side)
        self.patch_size = patch_size

    def forward(
        self, maps: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        """[K, C, P, P] of boxes [A, 4] (left, top, right, bottom in pixels) of each image."""
        finer = [map_BCHW for name, map_BCHW in maps.items() if name != "pool"]
        table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in finer])
        lengths = torch.tensor([m.numel() // m.shape[1] for m in finer], device=table.device)
        sides = torch.tensor([m.shape[-1] for m in finer], device=table.device)
        boxes_K4 = torch.cat(boxes)
        level_K = self._levels(boxes_K4)
        images = [torch.full((len(b),), n, device=b.device) for n, b in enumerate(boxes)]
        side_K = sides[level_K]
        first_K = (lengths.cumsum(0) - lengths)[level_K] + torch.cat(images) * side_K**2
        stride_K = self.patch_size * 2.0 ** (level_K - 2)
        ends_K4 = boxes_K4 / stride_K[:, None]
        at_x, weight_x = self._points(ends_K4[:, 0], ends_K4[:, 2], side_K)
        at_y, weight_y = self._points(ends_K4[:, 1], ends_K4[:, 3], side_K)
        at_y = first_K[:, None, None] + at_y * side_K[:, None, None]
        side = self.output_size[0]
        # Rows of bins, columns of bins, then the points of each bin, four texels each.
        at = (at_y[:, :, None, :, None] + at_x[:, None, :, None, :]).reshape(-1, 4 * _SAMPLES**2)
        weight = (weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]).reshape(at.shape)
        pooled = embedding_bag(at, table, mode="sum", per_sample_weights=weight)
        return pooled.view(len(boxes_K4), side, side, table.shape[1]).permute(0, 3, 1, 2)

    def _levels(self, boxes_K4: Tensor) -> Tensor:
        spans = (boxes_K4[:, 2:] - boxes_K4[:, :2]).clamp(min=0)
        scale_K = spans.prod(dim=1).sqrt() / (_CANONICAL * self.patch_size)
        # The smallest addend keeps 224 pixels in their level after rounding, as in torchvision.
        return (2 + scale_K.clamp(min=1e-6).log2() + 1e-6).floor().clamp(0, 3).long()

    def _points(self, start_K: Tensor, end_K: Tensor, side_K: Tensor) -> tuple[Tensor, Tensor]:
        """Where each bin's points lie between, along one axis, and the weight of each [K, P, 4]."""
        count = self.output_size[0] * _SAMPLES
        shares = (torch.arange(count, device=start_K.device) + 0.5) / count
        last_K1 = (side_K - 1)[:, None]
        exact = start_K[:, None] + (end_K - start_K)[:, None] * shares - 0.5
        exact = exact.clamp(min=0).minimum(last_K1.to(exact.dtype))
        low = exact.floor().long()
        high = (low + 1).minimum(last_K1)
        upper = exact - low
        at = torch.stack([low, high], dim=-1)
        weight = torch.stack([1 - upper, upper], dim=-1) / _SAMPLES
        shape = (len(start_K), self.output_size[0], 2 * _SAMPLES)
        return at.reshape(shape), weight.reshape(shape)
