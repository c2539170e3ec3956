import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpm.evaluate.detect.config import Detect, DetectData, VitDetRecipe

SIDE = 32


@dataclass(frozen=True)
class Here:
    data: dict[str, Path]
    threads: int = 1
    loaders: int = 0
    download: bool = False


def write_coco(root: Path, *, train: int = 12, val: int = 5, year: str = "2017") -> Path:
    """Dark images of 32 x 24 with one bright block each, whose colour is its class."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        folder = root / f"{split}{year}"
        folder.mkdir()
        document: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}],
        }
        for number in range(count):
            pixels = rng.integers(0, 60, (24, SIDE, 3), dtype=np.uint8)
            w, h = rng.integers(8, 14, 2).tolist()
            x, y = int(rng.integers(0, SIDE - w)), int(rng.integers(0, 24 - h))
            red = number % 2 == 0
            pixels[y : y + h, x : x + w, 0 if red else 2] = 250
            name = f"{number:04}.png"
            Image.fromarray(pixels).save(folder / name)
            document["images"].append(
                {"id": 100 + number, "file_name": name, "width": SIDE, "height": 24}
            )
            document["annotations"].append(
                {
                    "id": 50 + number,
                    "image_id": 100 + number,
                    "category_id": 3 if red else 7,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        (root / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A place with `blocks`, a data set in COCO's layout."""
    return Here({"blocks": write_coco(tmp_path_factory.mktemp("data") / "blocks")})


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write such a set into a folder."""
    return write_coco


@pytest.fixture
def edit() -> Callable[[Path, str, Callable[[dict[str, Any]], object]], None]:
    """Change an annotation file."""

    def change(root: Path, split: str, how: Callable[[dict[str, Any]], object]) -> None:
        file = root / "annotations" / f"instances_{split}2017.json"
        document = json.loads(file.read_text())
        how(document)
        file.write_text(json.dumps(document))

    return change


@pytest.fixture(scope="session")
def small() -> Detect:
    """A detector of milliseconds: 3 epochs of 3 steps, and one batch of validation images."""
    return Detect(
        data=DetectData(name="blocks"),
        image_size=32,
        min_scale=0.8,
        max_scale=1.25,
        channels=8,
        convolutions=1,
        box_width=16,
        anchors=16,
        regions=8,
        proposals=20,
        optim=VitDetRecipe(
            epochs=3,
            warmup_epochs=0.0,
            base_lr=0.1,
            batch_size=4,
            accumulate=2,
            ema=0.5,
            precision="float32",
        ),
    )
