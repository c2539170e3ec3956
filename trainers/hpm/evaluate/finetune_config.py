"""Every setting of fine-tuning; the defaults are the official recipe of ViT-B/16."""

from dataclasses import dataclass, field

from hpm.config import Encoder, Role
from hpm.evaluate.config import EvalData
from hpm.evaluate.recipe import Recipe
from hpm.rules import require

__all__ = ["Augment", "Finetune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What is done to training images beyond crop and flip, and to labels; 0 leaves a thing out.

    `rand_magnitude` is the N of timm's RandAugment `rand-mN-mstd0.5-inc1`, and `erasing` the share
    of images of which a rectangle becomes noise. `mixup` and `cutmix` are the parameters of the
    Beta distributions that the weights of two mixed images come from; with both, chance chooses for
    each step. `smoothing` is the part of a label that all classes share.
    """

    rand_magnitude: int = 9
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        magnitude, erasing, smoothing = self.rand_magnitude, self.erasing, self.smoothing
        require(
            (0 <= magnitude <= 10, "rand_magnitude", f"must be in [0, 10], got {magnitude}."),
            (0 <= erasing <= 1, "erasing", f"must be in [0, 1], got {erasing:g}."),
            (self.mixup >= 0, "mixup", f"must be 0 or more, got {self.mixup:g}."),
            (self.cutmix >= 0, "cutmix", f"must be 0 or more, got {self.cutmix:g}."),
            (0 <= smoothing < 1, "smoothing", f"must be in [0, 1), got {smoothing:g}."),
        )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, two and two."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Fine-tuning of the whole encoder with a new norm and a linear layer on its mean token.

    `data` null means the data set that the encoder was trained on, in crops of at least 0.08 of an
    image, as officially; `image_size` null means the size that it was trained on. `role` says whose
    weights are the start (official: --teacher). `drop_path` is that of the last block.
    """

    data: EvalData | None = None
    image_size: int | None = None
    role: Role = "student"
    drop_path: float = 0.1
    augment: Augment = field(default_factory=Augment)
    optim: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        size, drop = self.image_size, self.drop_path
        require(
            (size is None or size >= 1, "image_size", f"must be at least 1 or null, got {size}."),
            (0 <= drop < 1, "drop_path", f"must be in [0, 1), got {drop:g}."),
        )

    def require(self, encoder: Encoder) -> None:
        """See that images of the size asked for are whole patches of an encoder.

        Raises:
            ConfigError: they are not.
        """
        size, patch = self.image_size, encoder.patch_size
        sentence = f"must be divisible by the encoder's patch_size={patch}, got {size}."
        require((size is None or size % patch == 0, "image_size", sentence))
