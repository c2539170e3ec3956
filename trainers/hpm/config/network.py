"""The networks: encoder, reconstructor and loss predictor."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hpm.rules import Rule, at_least_one, require

__all__ = ["Decoder", "Encoder", "Predictor", "Role"]

Role: TypeAlias = Literal["student", "teacher"]
"""Whose weights: those that were trained, or their average that trailed them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A plain vision transformer."""

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        require(
            *at_least_one(self, "patch_size", "width", "depth", "heads"),
            (self.mlp_ratio > 0, "mlp_ratio", f"must be above 0, got {self.mlp_ratio:g}."),
            *_attention(self.width, self.heads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The reconstructor: so many blocks, or with `depth` 0 one linear layer on the encoder."""

    width: int = 512
    depth: int = 8
    heads: int = 16

    def __post_init__(self) -> None:
        require(
            *at_least_one(self, "width", "heads"),
            (self.depth >= 0, "depth", f"must be 0 or more, got {self.depth}."),
            *_attention(self.width, self.heads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """The loss predictor: trained on pairs (BCE), on values (MSE), or not there (MAE).

    It `shares` with the reconstructor what both see (official: one projection and one mask token),
    its blocks too, so that it is one layer more, or nothing. What of its sizes is null is the
    reconstructor's. Its `head` says as many values of a patch as it has pixel values, whose mean is
    the predicted loss (official), or that scalar alone. `weight` is that of its loss beside the
    reconstruction's (official: 1).
    """

    objective: Literal["relative", "absolute", "none"] = "relative"
    shares: Literal["input", "blocks", "nothing"] = "input"
    head: Literal["patch", "scalar"] = "patch"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "depth": self.depth, "heads": self.heads}
        own = [name for name, size in sizes.items() if size is not None]
        require(
            *(
                ((sizes[name] or 0) >= 1, name, f"must be at least 1 or null, got {sizes[name]}.")
                for name in own
            ),
            (
                self.width is None or self.shares == "nothing",
                "width",
                f"must be null where it shares its {self.shares}, got {self.width}. "
                "Set predictor.shares to nothing.",
            ),
            (
                self.shares != "blocks" or not own,
                "shares",
                f"must not be blocks where sizes of its own are set ({', '.join(own)}).",
            ),
            (self.weight > 0, "weight", f"must be above 0, got {self.weight:g}."),
        )

    def blocks(self, decoder: Decoder) -> Decoder:
        """Its sizes beside those of the reconstructor."""
        return Decoder(
            width=self.width or decoder.width,
            depth=self.depth or decoder.depth,
            heads=self.heads or decoder.heads,
        )


def _attention(width: int, heads: int) -> list[Rule]:
    if width < 1 or heads < 1:
        return []
    return [
        (width % heads == 0, "width", f"must be divisible by heads={heads}, got {width}."),
        (width % 4 == 0, "width", f"must be divisible by 4 (sin-cos positions), got {width}."),
    ]
