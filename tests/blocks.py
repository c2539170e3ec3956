"""Images of coloured blocks, each colour a class: what segmentation is tested on."""

from pathlib import Path

import numpy as np
from PIL import Image

from hpm.evaluate.recipe import Recipe
from hpm.evaluate.segment.config import MapData, Segment

TRAIN, VAL = 24, 38
"""Of validation, three batches, the last one smaller."""

RECIPE = Recipe(
    epochs=2,
    warmup_epochs=0.5,
    base_lr=0.1,
    batch_size=8,
    layer_decay=0.9,
    decay="linear",
    min_lr=0.0,
    precision="float32",
)

CONFIG = Segment(
    data=MapData(name="blocks", void=0, classes=3),
    channels=8,
    short_side=None,
    crop=16,
    stride=8,
    scale=(1.0, 1.5),
    optim=RECIPE,
)


def write_blocks(root: Path) -> Path:
    """The data set in ADE20K's layout: values 1 to 3, and void in places; two sizes."""
    rng = np.random.default_rng(0)
    colours = np.array([[128, 128, 128], [200, 60, 60], [60, 200, 60], [60, 60, 200]])
    for split, count in (("training", TRAIN), ("validation", VAL)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            blocks = rng.integers(1, 4, (2, 2 + index % 2))
            values = blocks.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
            pixels = colours[values] + rng.integers(-20, 20, (*values.shape, 3))
            values[rng.random(values.shape) < 0.05] = 0
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / "images" / split / f"{index:02}.png")
            Image.fromarray(values).save(root / "annotations" / split / f"{index:02}.png")
    return root
