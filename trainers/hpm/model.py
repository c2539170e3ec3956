"""The networks: an encoder, and over its tokens a reconstructor and a loss predictor.

Both heads share one projection of the encoder's tokens, one mask token and one table of
positions, and have blocks of their own. One class serves all roles: MAE has no loss predictor,
a teacher no reconstructor.

Letters: B images, N patches, K visible, M hidden, D width, P values of one patch (3 p * p),
T tokens.
"""

from functools import partial
from typing import NamedTuple

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hpm import config
from hpm.randomness import Purpose, generator

__all__ = [
    "DecoderInput",
    "Head",
    "MaskedModel",
    "Prediction",
    "VisionTransformer",
    "initialize",
    "positions",
]

# MAE's; timm's blocks have it by default.
_NORM_EPS = 1e-6


class Prediction(NamedTuple):
    """What a student says of the hidden patches; an MAE has no loss predictor."""

    patches_BMP: Tensor
    loss_BM: Tensor | None


class VisionTransformer(nn.Module):
    """The encoder: a plain vision transformer with a CLS token and fixed sin-cos positions."""

    positions_ND: Tensor

    def __init__(self, settings: config.Encoder, *, image_size: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(image_size, settings.patch_size, 3, settings.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.blocks = _blocks(settings.width, settings.depth, settings.heads, settings.mlp_ratio)
        self.norm = nn.LayerNorm(settings.width, eps=_NORM_EPS)
        table = positions(image_size // settings.patch_size, settings.width)
        self.register_buffer("positions_ND", table, persistent=False)

    def forward(self, images_BCHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Normalised tokens [B, 1+K, D], CLS first, of the visible patches (None: of all)."""
        tokens_BKD = self.patch_embed(images_BCHW) + self.positions_ND
        if visible_BK is not None:
            tokens_BKD = tokens_BKD.take_along_dim(visible_BK[:, :, None], dim=1)
        cls = self.cls_token.expand(len(tokens_BKD), -1, -1)
        tokens: Tensor = self.norm(self.blocks(torch.cat([cls, tokens_BKD], dim=1)))
        return tokens


class Head(nn.Module):
    """Blocks over visible and mask tokens, and P values for each token that is asked for."""

    def __init__(self, settings: config.Decoder, *, mlp_ratio: float, outputs: int) -> None:
        super().__init__()
        self.blocks = _blocks(settings.width, settings.depth, settings.heads, mlp_ratio)
        self.norm = nn.LayerNorm(settings.width, eps=_NORM_EPS)
        self.output = nn.Linear(settings.width, outputs)

    def forward(self, tokens_BTD: Tensor, first: int) -> Tensor:
        """Outputs [B, T - first, P] of the tokens from `first` on."""
        values: Tensor = self.output(self.norm(self.blocks(tokens_BTD)[:, first:]))
        return values


class DecoderInput(nn.Module):
    """What both heads see: visible tokens narrowed, hidden ones as mask tokens, all placed."""

    positions_ND: Tensor

    def __init__(self, encoder: config.Encoder, width: int, *, image_size: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = positions(image_size // encoder.patch_size, width)
        self.register_buffer("positions_ND", table, persistent=False)

    def forward(self, encoded_BTD: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Tokens [B, 1+K+M, D]: CLS, then the visible patches, then the hidden ones."""
        embedded = self.embed(encoded_BTD)
        masks = self.mask_token.expand(*hidden_BM.shape, -1)
        patches = torch.cat([embedded[:, 1:], masks], dim=1)
        places = self.positions_ND[torch.cat([visible_BK, hidden_BM], dim=1)]
        return torch.cat([embedded[:, :1], patches + places], dim=1)


class MaskedModel(nn.Module):
    """Encoder and heads: `forward` looks at masked images, `predict_loss` at whole ones."""

    def __init__(
        self,
        encoder: config.Encoder,
        decoder: config.Decoder,
        *,
        image_size: int,
        reconstructor: bool = True,
        loss_predictor: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = VisionTransformer(encoder, image_size=image_size)
        self.decoder_input = DecoderInput(encoder, decoder.width, image_size=image_size)
        head = partial(
            Head, decoder, mlp_ratio=encoder.mlp_ratio, outputs=3 * encoder.patch_size**2
        )
        self.reconstructor = head() if reconstructor else None
        self.loss_predictor = head() if loss_predictor else None

    def forward(self, images_BCHW: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Prediction:
        """Predictions for the hidden patches from the visible ones, in the order of `hidden`."""
        assert self.reconstructor is not None, "this model has no reconstructor"
        encoded = self.encoder(images_BCHW, visible_BK)
        tokens = self.decoder_input(encoded, visible_BK, hidden_BM)
        first = 1 + visible_BK.shape[1]
        return Prediction(self.reconstructor(tokens, first), self._loss(tokens, first))

    def predict_loss(self, images_BCHW: Tensor) -> Tensor:
        """Predicted loss [B, N] of every patch of whole images; the reconstructor does not run."""
        encoded = self.encoder(images_BCHW)
        batch, tokens = encoded.shape[:2]
        every_BN = torch.arange(tokens - 1, device=encoded.device).expand(batch, -1)
        loss_BN = self._loss(self.decoder_input(encoded, every_BN, every_BN[:, :0]), first=1)
        assert loss_BN is not None, "this model has no loss predictor"
        return loss_BN

    def _loss(self, tokens_BTD: Tensor, first: int) -> Tensor | None:
        if self.loss_predictor is None:
            return None
        # Official: as many outputs as the reconstructor, whose mean is the predicted loss.
        # In float32, for a mean rounded to bfloat16 would leave ties in the order of the patches.
        loss: Tensor = self.loss_predictor(tokens_BTD, first).float().mean(dim=-1)
        return loss


def positions(side: int, width: int) -> Tensor:
    """MAE's sin-cos table [N, D] of a square grid: the column in the first half of the width."""
    table = build_sincos2d_pos_embed([side, side], dim=width, interleave_sin_cos=True)
    # timm puts the row first.
    return table.roll(width // 2, dims=1)


def initialize(model: nn.Module, *, seed: int) -> None:
    """Draw all weights as MAE does: Xavier uniform, tokens normal with 0.02, biases 0.

    MAE leaves the patch embedding's bias as PyTorch draws it: uniform in +-1 / sqrt(fan_in).

    The draws follow the order of the modules, so an encoder alone, an MAE and an HPM model share
    the weights of the parts that they have in common.
    """
    draws = torch.Generator()
    draws.manual_seed(int(generator(Purpose.INIT, seed=seed).integers(2**63)))
    for module in model.modules():
        for name, token in module.named_parameters(recurse=False):
            if name.endswith("_token"):
                nn.init.normal_(token, std=0.02, generator=draws)
        match module:
            case nn.Linear() | nn.Conv2d():
                matrix = module.weight.detach().flatten(1)
                nn.init.xavier_uniform_(matrix, generator=draws)
                assert module.bias is not None
                bound = matrix.shape[1] ** -0.5 if isinstance(module, nn.Conv2d) else 0.0
                nn.init.uniform_(module.bias, -bound, bound, generator=draws)


def _blocks(width: int, depth: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    blocks = (Block(width, heads, mlp_ratio, qkv_bias=True) for _ in range(depth))
    return nn.Sequential(*blocks)
