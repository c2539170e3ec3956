"""Named configurations: preset to stage to the settings that differ from `hpm.config`'s defaults.

The official recipe is the code and scripts at github.com/Haochen-Wang409/HPM; the defaults are its
ViT-B/16. What it states nowhere is marked as ours.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

__all__ = ["PRESETS"]

Preset: TypeAlias = Mapping[str, Mapping[str, Any]]

# PRETRAIN.md: 8 GPUs with 32 images each and 8 passes a step, 2048 in all.
_VIT_BASE_200: Final[Preset] = {
    "pretrain": {"optim": {"accumulate": 8}},
    "random": {},
    # Ours: ImageNet's raw pixels at 224 would need 771 GB.
    "pixels": {"data": {"image_size": 32}},
    "knn": {},
    "linear": {},
    # ViTDet on COCO; a place says where the set of this name lies.
    "detect": {"data": {"name": "coco"}},
}

# pretrain_base.sh: as above, but one pass a step, 256 in all.
_VIT_BASE_800: Final[Preset] = {
    **_VIT_BASE_200,
    "pretrain": {"epochs": 800, "optim": {"batch_size": 256}},
}

# pretrain_large.sh, which names the base model by mistake; sizes are ViT-L/16's.
_LARGE: Final = {"width": 1024, "depth": 24, "heads": 16}
_VIT_LARGE_800: Final[Preset] = {
    **_VIT_BASE_200,
    "pretrain": {"epochs": 800, "optim": {"batch_size": 256}, "encoder": _LARGE},
    "random": {"encoder": _LARGE},
    # detectron2's mask_rcnn_vitdet_l_100ep.
    "detect": {"data": {"name": "coco"}, "drop_path": 0.4, "optim": {"layer_decay": 0.8}},
}

# Ours, for one core and about a minute: with batches of 16, two epochs of 8,000 images still make
# 1,000 steps, and the teacher follows faster than it must in 200 epochs of ImageNet.
_FASHION: Final = {"name": "fashion-scenes", "image_size": 32}
_PICO: Final = {"patch_size": 4, "width": 96, "depth": 3, "heads": 3}
_VIT_PICO: Final[Preset] = {
    "pretrain": {
        "data": _FASHION,
        "encoder": _PICO,
        "decoder": {"width": 64, "depth": 1, "heads": 4},
        "mask": {"schedule_by": "step"},
        "target": {"kind": "normalized-pixels"},
        "ema": {"start": 0.99, "end": 0.99, "ramp_epochs": 0},
        "optim": {"base_lr": 0.024, "batch_size": 16, "warmup_epochs": 0.2},
        "epochs": 2,
        "precision": "float32",
    },
    "random": {"data": _FASHION, "encoder": _PICO},
    "pixels": {"data": _FASHION},
    "knn": {"pool": "mean"},
    "linear": {
        "pool": "mean",
        "augment": False,
        "epochs": 50,
        "warmup_epochs": 5,
        "base_lr": 0.1,
        "batch_size": 256,
    },
    # About two minutes: 500 steps, far too few for a good detector, so its numbers are small.
    "detect": {
        "image_size": 32,
        "min_scale": 0.8,
        "max_scale": 1.25,
        "drop_path": 0.0,
        "channels": 32,
        "convolutions": 1,
        "box_width": 128,
        "anchors": 32,
        "regions": 16,
        "proposals": 50,
        "optim": {
            "epochs": 1,
            "warmup_epochs": 0.1,
            "base_lr": 0.016,
            "decay": "cosine",
            "batch_size": 16,
            "weight_decay": 0.05,
            "precision": "float32",
        },
    },
}

PRESETS: Final[Mapping[str, Preset]] = {
    "vit_base_in1k_200ep": _VIT_BASE_200,
    "vit_base_in1k_800ep": _VIT_BASE_800,
    "vit_large_in1k_800ep": _VIT_LARGE_800,
    "vit_pico_32px": _VIT_PICO,
}
