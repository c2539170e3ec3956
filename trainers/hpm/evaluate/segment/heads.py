"""What makes scores of classes out of an encoder's tokens, and the network of both.

UPerNet (Xiao et al., ECCV 2018) as BEiT and MAE put it on a plain vision transformer: four of its
layers become a pyramid of scales. Its batch normalisation is a layer normalisation here, which
knows of no other images, so that the number of workers changes nothing. Letters: B images, C
classes, D channels, H, W height and width in patches (or, of a level, in its cells), S side of the
images, U channels that are dropped by chance.
"""

from collections.abc import Sequence
from typing import final

import torch
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hpm.evaluate.segment.config import Segment
from hpm.evaluate.segment.resizing import halve, pool, resize
from hpm.randomness import Purpose, generator

__all__ = ["ChannelDrop", "Linear", "Segmenter", "UperNet", "build_head"]

_POOLED = (1, 2, 3, 6)
_AUXILIARY_CHANNELS = 256


@final
class ChannelDrop(nn.Module):
    """Leaves some channels of an image out, and weighs the others more; coins are handed in."""

    def __init__(self, rate: float, channels: int) -> None:
        super().__init__()
        self.rate = rate
        self.channels = channels
        self.coins_BD: Tensor | None = None

    def forward(self, values_BDHW: Tensor) -> Tensor:
        """The values, 0 in training where a channel's coin is below the rate."""
        if not self.training or self.rate == 0:
            return values_BDHW
        assert self.coins_BD is not None, "channels that are dropped in training need coins"
        kept_BD = (self.coins_BD >= self.rate).to(values_BDHW.dtype) / (1 - self.rate)
        return values_BDHW * kept_BD[:, :, None, None]


@final
class Linear(nn.Module):
    """A norm and one layer on the last tokens."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.output = nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Scores [B, C, H, W]."""
        return (self.output(self.norm(features[-1])),)


@final
class UperNet(nn.Module):
    """Pyramid pooling on the coarsest of four scales, and a pyramid from there to the finest."""

    def __init__(self, config: Segment, width: int, classes: int) -> None:
        super().__init__()
        channels = config.channels or width
        self.up4 = nn.Sequential(_double(width), LayerNorm2d(width), nn.GELU(), _double(width))
        self.up2 = _double(width)
        self.pooled = nn.ModuleList(_convolution(width, channels, 1) for _ in _POOLED)
        self.top = _convolution(width + len(_POOLED) * channels, channels, 3)
        self.laterals = nn.ModuleList(_convolution(width, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in range(3))
        self.fuse = _convolution(4 * channels, channels, 3)
        self.output = _output(channels, classes, config.dropout)
        self.auxiliary: nn.Module | None = None
        if config.auxiliary > 0:
            self.auxiliary = nn.Sequential(
                _convolution(width, _AUXILIARY_CHANNELS, 3),
                _output(_AUXILIARY_CHANNELS, classes, config.dropout),
            )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Scores [B, C, 4H, 4W], and in training the auxiliary ones [B, C, H, W]."""
        first, second, third, fourth = features
        levels = [self.up4(first), self.up2(second), third]
        merged = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        merged.append(self._pyramid_pool(halve(fourth)))
        for finer in (2, 1, 0):
            merged[finer] = merged[finer] + resize(merged[finer + 1], *merged[finer].shape[2:])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=False)]
        finest = smoothed[0].shape[2:]
        fused = self.fuse(torch.cat([resize(x, *finest) for x in (*smoothed, merged[3])], dim=1))
        scores: Tensor = self.output(fused)
        if self.auxiliary is None or not self.training:
            return (scores,)
        return scores, self.auxiliary(third)

    def _pyramid_pool(self, coarsest: Tensor) -> Tensor:
        size = coarsest.shape[2:]
        pooled = [
            resize(convolve(pool(coarsest, cells)), *size)
            for convolve, cells in zip(self.pooled, _POOLED, strict=True)
        ]
        top: Tensor = self.top(torch.cat([coarsest, *pooled], dim=1))
        return top


@final
class Segmenter(nn.Module):
    """An encoder and a head on the tokens after some of its blocks."""

    def __init__(
        self, encoder: VisionTransformer, head: Linear | UperNet, layers: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.layers = layers
        # Tokens are taken before it.
        encoder.norm.requires_grad_(False)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Scores of the head, and in training those of an auxiliary one, at its resolution."""
        wanted = sorted({layer - 1 for layer in self.layers})
        found = self.encoder.forward_intermediates(
            images_BCHW, indices=wanted, stop_early=True, intermediates_only=True
        )
        by_block = dict(zip(wanted, found, strict=True))
        scores: tuple[Tensor, ...] = self.head([by_block[layer - 1] for layer in self.layers])
        return scores

    @property
    def channel_drops(self) -> list[ChannelDrop]:
        """Those of the head."""
        return [module for module in self.head.modules() if isinstance(module, ChannelDrop)]


def build_head(config: Segment, *, width: int, classes: int, seed: int) -> Linear | UperNet:
    """A new head, its weights drawn from the seed."""
    head = Linear(width, classes) if config.head == "linear" else UperNet(config, width, classes)
    draws = torch.Generator().manual_seed(int(generator(Purpose.INIT, seed=seed).integers(2**63)))
    for module in head.modules():
        match module:
            case nn.ConvTranspose2d(in_channels=inputs):
                nn.init.normal_(module.weight, std=inputs**-0.5, generator=draws)
            case nn.Conv2d(bias=None):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draws)
            case nn.Conv2d():
                # mmsegmentation's, of a last layer.
                nn.init.normal_(module.weight, std=0.01, generator=draws)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return head


def _double(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        LayerNorm2d(outputs),
        nn.ReLU(),
    )


def _output(channels: int, classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(ChannelDrop(dropout, channels), nn.Conv2d(channels, classes, 1))
