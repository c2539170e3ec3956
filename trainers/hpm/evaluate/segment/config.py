"""Every setting of the evaluation `segment`; the defaults are the official link's ViT-B on ADE20K.

That is mmsegmentation's UPerNet with MAE (`configs/mae`), to which HPM's README points. Ours are
bfloat16 in the place of float16, and `layers` at quarters of the depth (3, 6, 9 and 12 of ViT-B);
the link has 4, 6, 8 and 12 (3, 5, 7 and 11, counted from 0), and so have the presets of ViT-B.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, final

from hpm.config import Encoder, Role
from hpm.data.maps import Classes
from hpm.evaluate.recipe import Recipe
from hpm.rules import Rule, at_least_one, require

__all__ = ["MapData", "Segment", "UperNetRecipe"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UperNetRecipe(Recipe):
    """A recipe whose defaults are mmsegmentation's with UPerNet and MAE's ViT-B on ADE20K.

    Its 160,000 iterations and 1,500 of warm-up are 126.7 and 1.19 epochs of 20,210 images in
    batches of 16; its rate of 1e-4 is `base_lr` for 256. A type of its own, so that a study that
    sets one of these keeps the others.
    """

    epochs: int = 127
    warmup_epochs: float = 1.19
    base_lr: float = 1.6e-3
    min_lr: float = 0.0
    decay: Literal["cosine", "linear", "steps"] = "linear"
    batch_size: int = 16
    layer_decay: float = 0.65


@dataclass(frozen=True, slots=True, kw_only=True)
class MapData:
    """Another data set than the encoder's, and what its annotations' values mean.

    `void` is the value of pixels that count nowhere, `classes` how many classes there are; null
    leaves either to the data set (see `hpm.data.maps.open_maps`).
    """

    name: str
    void: int | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        void, classes = self.void, self.classes
        require(
            (
                void is None or 0 <= void <= 255,
                "void",
                f"must be in [0, 255] or null, got {void}.",
            ),
            (
                classes is None or 2 <= classes <= 255,
                "classes",
                f"must be in [2, 255] or null, got {classes}.",
            ),
            (
                void is None or classes is None or void == 0 or void >= classes,
                "void",
                f"must be 0 or at least classes={classes}, got {void}.",
            ),
        )

    @property
    def said(self) -> Classes:
        """What is said of the values."""
        return Classes(self.void, self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A head on an encoder, which is trained with it or `frozen`.

    `upernet` sees the tokens after the four blocks `layers`, counted from 1 (null: at 1/4, 1/2, 3/4
    and the end of the depth), and has `channels` (null: the encoder's width), an `auxiliary` head
    on the third of them with that weight in the loss, and `dropout` of channels before its last
    layers. `linear` is a norm and a layer on the last block's tokens: with it `channels` must be
    null, and no notice is taken of the other three. `drop_path` is that of the encoder's last
    block.

    Images are brought to a shorter side of `short_side` (null: left as they are) and in training
    scaled once more by a factor from `scale`. A training view is a square of `crop` pixels, drawn
    again up to ten times where one class has more than `crop_share` of it. In validation squares of
    that size, `stride` apart, cover the image, and their scores are averaged. `distort` changes
    brightness, contrast, saturation and hue of training views. `data` null means the data set that
    the encoder was trained on.
    """

    data: MapData | None = None
    role: Role = "student"
    frozen: bool = False
    head: Literal["upernet", "linear"] = "upernet"
    layers: tuple[int, ...] | None = None
    channels: int | None = None
    auxiliary: float = 0.4
    dropout: float = 0.1
    drop_path: float = 0.1
    short_side: int | None = 512
    scale: tuple[float, float] = (0.5, 2.0)
    crop: int = 512
    crop_share: float = 0.75
    stride: int = 341
    flip: bool = True
    distort: bool = True
    optim: UperNetRecipe = field(default_factory=UperNetRecipe)

    def __post_init__(self) -> None:
        require(*self._network_rules(), *self._view_rules())

    def _network_rules(self) -> Iterator[Rule]:
        layers, channels, drop = self.layers, self.channels, self.drop_path
        yield (
            layers is None
            or (len(layers) == 4 and min(layers) >= 1 and [*layers] == sorted(layers)),
            "layers",
            f"must be four numbers from 1 on in ascending order, or null, got {layers}.",
        )
        yield (
            channels is None or channels >= 1,
            "channels",
            f"must be at least 1 or null, got {channels}.",
        )
        yield (
            channels is None or self.head == "upernet",
            "channels",
            f"must be null where head is {self.head}, got {channels}.",
        )
        yield self.auxiliary >= 0, "auxiliary", f"must be 0 or more, got {self.auxiliary:g}."
        yield 0 <= self.dropout < 1, "dropout", f"must be in [0, 1), got {self.dropout:g}."
        yield 0 <= drop < 1, "drop_path", f"must be in [0, 1), got {drop:g}."
        yield (
            drop == 0 or not self.frozen,
            "drop_path",
            f"must be 0 where the encoder is frozen, got {drop:g}.",
        )

    def _view_rules(self) -> Iterator[Rule]:
        short, share, (low, high) = self.short_side, self.crop_share, self.scale
        yield (
            short is None or short >= 1,
            "short_side",
            f"must be at least 1 or null, got {short}.",
        )
        yield (
            0 < low <= high,
            "scale",
            f"must be [least, most], both above 0, got [{low:g}, {high:g}].",
        )
        yield from at_least_one(self, "crop")
        yield 0 < share <= 1, "crop_share", f"must be in (0, 1], got {share:g}."
        yield (
            1 <= self.stride <= max(self.crop, 1),
            "stride",
            f"must be in [1, crop={self.crop}], got {self.stride}.",
        )

    def blocks(self, encoder: Encoder) -> tuple[int, ...]:
        """After which blocks of an encoder tokens are taken: four, or of a linear head the last."""
        if self.head == "linear":
            return (encoder.depth,)
        return self.layers or tuple(-(-encoder.depth * part // 4) for part in (1, 2, 3, 4))

    def require(self, encoder: Encoder) -> None:
        """See that an encoder has what is asked of it.

        Raises:
            ConfigError: a crop is no whole number of its patches, or it has too few blocks.
        """
        patch = encoder.patch_size
        require(
            (
                self.crop % patch == 0,
                "crop",
                f"must be divisible by the encoder's patch_size={patch}, got {self.crop}.",
            ),
            (
                max(self.blocks(encoder)) <= encoder.depth,
                "layers",
                f"must be blocks of the encoder, which has {encoder.depth}, got {self.layers}.",
            ),
        )
