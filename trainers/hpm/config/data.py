"""Which images a run sees, and how."""

from dataclasses import dataclass

from hpm.rules import Rule, require

__all__ = ["Data", "min_crop_rule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Which images, and how a training view is drawn from one (official: crop 0.2 to 1, flip)."""

    name: str = "imagenet"
    image_size: int = 224
    min_crop: float = 0.2
    flip: bool = True

    def __post_init__(self) -> None:
        require(
            (self.image_size >= 1, "image_size", f"must be at least 1, got {self.image_size}."),
            min_crop_rule(self.min_crop),
        )


def min_crop_rule(share: float) -> Rule:
    """The rule that a crop is some of an image, or all of it."""
    return 0 < share <= 1, "min_crop", f"must be in (0, 1], got {share:g}."
