"""Every setting of the evaluations and of the yardsticks that stand in for pretraining."""

from dataclasses import dataclass, field
from typing import Literal

from hpm.config import Data, Encoder, Role, fits, min_crop_rule
from hpm.data.errors import DataError
from hpm.rules import at_least_one, require

__all__ = [
    "OFFICIAL_MIN_CROP",
    "Checkpoint",
    "EvalData",
    "Knn",
    "Linear",
    "Pixels",
    "Random",
]

OFFICIAL_MIN_CROP = 0.08
"""Least share of an image in crops of a probe and of fine-tuning; of pretraining it is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """The yardstick below training: an encoder as it was initialised."""

    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)

    def __post_init__(self) -> None:
        require(fits(self.data, self.encoder))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An encoder that was trained elsewhere, from the file that the place calls `weights`.

    Official checkpoints of HPM hold a student and a teacher, its average; others one encoder.
    How many heads an encoder has cannot be seen in its file: `encoder.heads` must say it (ViT-Ti 3,
    S 6, B 12, L and H 16), or all that is evaluated is wrong.
    """

    weights: str = "checkpoint"
    role: Role = "student"
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)

    def __post_init__(self) -> None:
        require(fits(self.data, self.encoder))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The yardstick below any encoder: the image itself as the feature vector."""

    data: Data = field(default_factory=Data)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalData:
    """Another data set than the encoder's. Images have the size that the encoder takes.

    `min_crop` and `flip` matter to an evaluation that trains on augmented views.
    """

    name: str
    min_crop: float = OFFICIAL_MIN_CROP
    flip: bool = True

    def __post_init__(self) -> None:
        require(min_crop_rule(self.min_crop))


@dataclass(frozen=True, slots=True, kw_only=True)
class Knn:
    """k-NN on frozen features: cosine, DINO's weighted vote. `report_k` gives `top1` and `top5`.

    `data` null means the data set that the encoder was trained on; `role` says whose features.
    """

    data: EvalData | None = None
    role: Role = "student"
    k: tuple[int, ...] = (10, 20, 100, 200)
    report_k: int = 20
    temperature: float = 0.07
    pool: Literal["cls", "mean"] = "cls"

    def __post_init__(self) -> None:
        require(
            (
                len(self.k) > 0 and all(k >= 1 for k in self.k),
                "k",
                f"must be numbers of at least 1, got {self.k}.",
            ),
            (
                self.report_k in self.k,
                "report_k",
                f"must be one of k={self.k}, got {self.report_k}.",
            ),
            (self.temperature > 0, "temperature", f"must be above 0, got {self.temperature:g}."),
        )

    def require(self, num_images: int) -> None:
        """See that so many training images have enough neighbours. Raises DataError."""
        if max(self.k) > num_images:
            raise DataError(
                f"k must not exceed the {num_images} images of the training split, got "
                f"k={max(self.k)}. Leave that k out, or use more images."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Linear probe of a frozen encoder; lr = base_lr * batch_size / 256 (official recipe).

    Without `augment` the features are computed once, which is far cheaper and a little weaker.
    With it, crops are of at least 0.08 of an image, as officially, unless `data` says otherwise.
    `data` null means the data set that the encoder was trained on; `role` says whose features.
    """

    data: EvalData | None = None
    role: Role = "student"
    epochs: int = 100
    warmup_epochs: float = 10.0
    base_lr: float = 1e-3
    batch_size: int = 2048
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = True
    pool: Literal["cls", "mean"] = "cls"

    def __post_init__(self) -> None:
        require(
            *at_least_one(self, "epochs"),
            (
                self.batch_size >= 2,
                "batch_size",
                f"must be at least 2 (batch normalisation), got {self.batch_size}.",
            ),
            (self.base_lr > 0, "base_lr", f"must be above 0, got {self.base_lr:g}."),
            (0 <= self.momentum < 1, "momentum", f"must be in [0, 1), got {self.momentum:g}."),
            (
                self.weight_decay >= 0,
                "weight_decay",
                f"must be 0 or more, got {self.weight_decay:g}.",
            ),
            (
                0 <= self.warmup_epochs <= self.epochs,
                "warmup_epochs",
                f"must be in [0, epochs={self.epochs}], got {self.warmup_epochs:g}.",
            ),
        )
