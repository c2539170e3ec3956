"""ViTDet's simple feature pyramid: maps of five strides from the last map of a plain encoder.

Strides are p/4, p/2, p, 2p and 4p for patches of side p. Attention is global in every block, as in
pretraining: ViTDet's windows, a matter of speed, and its relative positions are left out. Letters:
B images of side S, N patches, D width of the encoder, C channels of the pyramid, H and W of a map.
"""

from typing import TypeAlias, final

import torch
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["Maps", "Pyramid"]

Maps: TypeAlias = dict[str, Tensor]
"""Maps [B, C, H, W] by name, the finest first."""


@final
class Pyramid(nn.Module):
    """The encoder, whose last norm is left out (as in ViTDet), and what makes maps of its map."""

    def __init__(self, encoder: VisionTransformer, channels: int) -> None:
        super().__init__()
        width = encoder.embed_dim
        encoder.norm = nn.Identity()
        self.encoder = encoder
        quarter = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, stride=2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
        )
        half = nn.ConvTranspose2d(width, width // 2, 2, stride=2)
        self.scales = nn.ModuleList([quarter, half, nn.Identity(), _Halve()])
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for inputs in (width // 4, width // 2, width, width)
        )

    def forward(self, images_BCHW: Tensor) -> Maps:
        """Five maps of normalised images, named 0 to 3 and `pool`."""
        tokens_BND = self.encoder(images_BCHW)[:, self.encoder.num_prefix_tokens :]
        grid = self.encoder.patch_embed.grid_size
        last_BDHW = tokens_BND.transpose(1, 2).reshape(len(tokens_BND), -1, *grid)
        maps = {
            str(number): output(scale(last_BDHW))
            for number, (scale, output) in enumerate(zip(self.scales, self.outputs, strict=True))
        }
        # A max-pooling of windows of 1 pixel, 2 apart.
        return {**maps, "pool": maps["3"][:, :, ::2, ::2]}


@final
class _Halve(nn.Module):
    """Max-pooling of 2 x 2 pixels, whose gradient is the same in every run on CUDA too."""

    def forward(self, map_BDHW: Tensor) -> Tensor:
        images, width, rows, columns = map_BDHW.shape
        squares = map_BDHW.view(images, width, rows // 2, 2, columns // 2, 2)
        return torch.amax(squares, dim=(3, 5))
