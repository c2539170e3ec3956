"""Named configurations: preset to stage to the settings that differ from `hpm.config`'s defaults."""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["PRESETS"]

Preset = Mapping[str, Mapping[str, Any]]

# The official scripts for 800 epochs: 32 images on each of 8 GPUs (256 in all).
_OFFICIAL_800: Final = {"epochs": 800, "optim": {"batch_size": 256}}
_LARGE: Final = {"width": 1024, "depth": 24, "heads": 16}

# As in the evaluations of the pretraining sets in which images differ in size by far more.
_FASHION: Final = {"name": "fashion-scenes", "image_size": 32}
_PICO: Final = {"patch_size": 4, "width": 128, "depth": 4, "heads": 4}

PRESETS: Final[Mapping[str, Preset]] = {}
