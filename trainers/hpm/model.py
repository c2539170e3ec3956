"""The networks: an encoder, and over its tokens a reconstructor and a loss predictor.

Officially both heads share one projection of the encoder's tokens, one mask token and one table of
positions, and have blocks of their own. One class serves all roles: MAE has no loss predictor, a
teacher no reconstructor, and SimMIM's encoder sees the mask tokens.

Letters: B images, N patches, K visible, M hidden, D width, P values said of one patch, T tokens.
"""

from functools import partial
from typing import Any, NamedTuple, assert_never

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

    values_BMP: Tensor
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
        return self._encode(tokens_BKD)

    def complete(self, images_BCHW: Tensor, hidden_BM: Tensor, mask_token: Tensor) -> Tensor:
        """Normalised tokens [B, 1+N, D] of all patches, the hidden ones replaced by mask tokens."""
        tokens_BND = self.patch_embed(images_BCHW)
        masks = mask_token.to(tokens_BND.dtype).expand(*hidden_BM.shape, -1)
        index = hidden_BM[:, :, None].expand_as(masks)
        return self._encode(tokens_BND.scatter(1, index, masks) + self.positions_ND)

    def attend(self, images_BCHW: Tensor) -> Tensor:
        """Attention [B, N] of the CLS token to every patch: of the last block, mean of its heads.

        AttMask (Kakogeorgiou et al., ECCV 2022) masks by it.
        """
        tokens = self._place(self.patch_embed(images_BCHW) + self.positions_ND)
        blocks: list[Any] = list(self.blocks)
        *before, last = blocks
        for block in before:
            tokens = block(tokens)
        batch, count, width = tokens.shape
        heads = last.attn.num_heads
        qkv = last.attn.qkv(last.norm1(tokens))
        query, key, _ = qkv.reshape(batch, count, 3, heads, width // heads).unbind(2)
        scores = torch.einsum("bhd,bnhd->bhn", query[:, 0], key).float() * (width // heads) ** -0.5
        attention: Tensor = scores.softmax(dim=-1).mean(dim=1)[:, 1:]
        return attention

    def _encode(self, tokens_BKD: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.blocks(self._place(tokens_BKD)))
        return tokens

    def _place(self, tokens_BKD: Tensor) -> Tensor:
        cls = self.cls_token.expand(len(tokens_BKD), -1, -1)
        return torch.cat([cls, tokens_BKD], dim=1)


class Head(nn.Module):
    """Blocks over visible and mask tokens, and a layer that says P values of each token.

    Without blocks it is one linear layer on the encoder's tokens.
    """

    def __init__(self, settings: config.Decoder, encoder: config.Encoder, *, outputs: int) -> None:
        super().__init__()
        self.linear = settings.depth == 0
        width = encoder.width if self.linear else settings.width
        self.blocks = _blocks(width, settings.depth, settings.heads, encoder.mlp_ratio)
        self.norm = nn.Identity() if self.linear else nn.LayerNorm(width, eps=_NORM_EPS)
        self.output = nn.Linear(width, outputs)

    def trunk(self, tokens_BTD: Tensor, first: int) -> Tensor:
        """What enters the last layer: the tokens [B, T - first, D] from `first` on."""
        tokens: Tensor = self.norm(self.blocks(tokens_BTD)[:, first:])
        return tokens


class DecoderInput(nn.Module):
    """What heads see: visible tokens narrowed, hidden ones as mask tokens, all placed.

    Where the encoder has seen mask tokens already, there are none here.
    """

    positions_ND: Tensor

    def __init__(
        self, encoder: config.Encoder, width: int, *, image_size: int, mask_token: bool
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, width)
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = positions(image_size // encoder.patch_size, width)
        self.register_buffer("positions_ND", table, persistent=False)

    def forward(self, encoded_BTD: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Tokens [B, 1+K+M, D]: CLS, then the visible patches, then the hidden ones."""
        tokens = self.embed(encoded_BTD)
        order = torch.cat([visible_BK, hidden_BM], dim=1)
        if tokens.shape[1] < 1 + order.shape[1]:
            masks = self.mask_token.expand(*hidden_BM.shape, -1)
            tokens = torch.cat([tokens, masks], dim=1)
        return torch.cat([tokens[:, :1], tokens[:, 1:] + self.positions_ND[order]], dim=1)


class MaskedModel(nn.Module):
    """Encoder and heads: `forward` looks at masked images, `predict_loss` at whole ones.

    `as_tokens` shows the encoder hidden patches as mask tokens. `outputs` are the values that the
    reconstructor says of a patch (None: those of its pixels).
    """

    def __init__(
        self,
        encoder: config.Encoder,
        decoder: config.Decoder,
        predictor: config.Predictor,
        *,
        image_size: int,
        as_tokens: bool = False,
        outputs: int | None = None,
        reconstructor: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = VisionTransformer(encoder, image_size=image_size)
        # A module of its own, for a model's own parameters would be drawn before the encoder's.
        self.hidden = nn.ParameterDict()
        if as_tokens:
            self.hidden["mask_token"] = nn.Parameter(torch.zeros(1, 1, encoder.width))
        own, pixels = predictor.blocks(decoder), 3 * encoder.patch_size**2
        said = pixels if predictor.head == "patch" else 1
        self.outputs = outputs or pixels
        predicts = predictor.objective != "none"
        enter = partial(DecoderInput, encoder, image_size=image_size, mask_token=not as_tokens)
        shared = decoder.depth > 0 or (predicts and predictor.shares == "input" and own.depth > 0)
        self.decoder_input = enter(decoder.width) if shared else None
        self.reconstructor = None
        if reconstructor or (predicts and predictor.shares == "blocks"):
            self.reconstructor = Head(decoder, encoder, outputs=self.outputs)
        self.predictor_input: DecoderInput | None = None
        self.loss_predictor: Head | nn.Linear | None = None
        match predictor.shares:
            case _ if not predicts:
                pass
            case "input":
                self.loss_predictor = Head(own, encoder, outputs=said)
            case "blocks":
                self.loss_predictor = nn.Linear(decoder.width, said)
            case "nothing":
                self.predictor_input = enter(own.width) if own.depth > 0 else None
                self.loss_predictor = Head(own, encoder, outputs=said)
            case other:
                assert_never(other)

    def forward(self, images_BCHW: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Prediction:
        """Predictions for the hidden patches from the visible ones, in the order of `hidden`."""
        assert self.reconstructor is not None, "this model has no reconstructor"
        encoded, first = self._encode(images_BCHW, visible_BK, hidden_BM), 1 + visible_BK.shape[1]
        shared = self._enter(self.decoder_input, encoded, visible_BK, hidden_BM)
        trunk = self.reconstructor.trunk(encoded if self.reconstructor.linear else shared, first)
        values = self.reconstructor.output(trunk)
        match self.loss_predictor:
            case None:
                return Prediction(values, None)
            case nn.Linear() as output:
                return Prediction(values, _loss(output, trunk))
            case head:
                if self.predictor_input is not None:
                    shared = self._enter(self.predictor_input, encoded, visible_BK, hidden_BM)
                trunk = head.trunk(encoded if head.linear else shared, first)
                return Prediction(values, _loss(head.output, trunk))

    def predict_loss(self, images_BCHW: Tensor) -> Tensor:
        """Predicted loss [B, N] of every patch of whole images."""
        return self.predicted(self.encoder(images_BCHW))

    def predicted(self, encoded_BTD: Tensor) -> Tensor:
        """Predicted loss [B, N] of every patch from the encoder's tokens of whole images.

        The reconstructor does not run, but for blocks that it shares.
        """
        every_BN = torch.arange(encoded_BTD.shape[1] - 1, device=encoded_BTD.device)
        every_BN = every_BN.expand(len(encoded_BTD), -1)
        enter = self.predictor_input or self.decoder_input
        tokens = self._enter(enter, encoded_BTD, every_BN, every_BN[:, :0])
        match self.loss_predictor:
            case None:
                raise AssertionError("this model has no loss predictor")
            case nn.Linear() as output:
                assert self.reconstructor is not None
                return _loss(output, self.reconstructor.trunk(tokens, 1))
            case head:
                return _loss(head.output, head.trunk(encoded_BTD if head.linear else tokens, 1))

    def _encode(self, images_BCHW: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Tokens of CLS and visible patches; then of the hidden, where they are mask tokens."""
        if "mask_token" not in self.hidden:
            encoded: Tensor = self.encoder(images_BCHW, visible_BK)
            return encoded
        tokens = self.encoder.complete(images_BCHW, hidden_BM, self.hidden["mask_token"])
        order = torch.cat([visible_BK, hidden_BM], dim=1) + 1
        patches = tokens.take_along_dim(order[:, :, None], dim=1)
        return torch.cat([tokens[:, :1], patches], dim=1)

    def _enter(
        self, enter: DecoderInput | None, encoded: Tensor, visible_BK: Tensor, hidden_BM: Tensor
    ) -> Tensor:
        return encoded if enter is None else enter(encoded, visible_BK, hidden_BM)


def _loss(output: nn.Linear, trunk_BND: Tensor) -> Tensor:
    """Predicted loss: the mean of the outputs (official: as many as a patch has pixel values).

    In float32, as a single output is computed too, for what is rounded to bfloat16 would leave ties
    in the order of the patches.
    """
    if output.out_features == 1:
        with torch.autocast(trunk_BND.device.type, enabled=False):
            said: Tensor = output(trunk_BND.float())
    else:
        said = output(trunk_BND)
    return said.float().mean(dim=-1)


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
