"""FashionScenes written in COCO's layout: the same objects, and so the same detector."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpm.config import Data, Encoder
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.data.object_sources import open_objects
from hpm.evaluate.config import Random
from hpm.evaluate.detect.config import DetectData
from hpm.evaluate.detect.stage import run
from hpm.trainer import TRAINER

COUNTS = {"train": 32, "val": 12}
SCENES = "fashion-scenes"


def _runs(mask: Any) -> dict[str, Any]:
    """COCO's uncompressed runs of a mask: lengths down the columns, from one outside on."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1])).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def _squares(mask: Any) -> list[list[int]]:
    """A polygon around each pixel of a mask."""
    return [[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for y, x in np.argwhere(mask).tolist()]


def _write(root: Path, outline: Any) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, count in COUNTS.items():
        scenes = FashionScenes.open(split)
        (root / f"{split}2017").mkdir()
        names = [f"{index:012}.png" for index in range(count)]
        annotations = []
        for index, name in enumerate(names):
            scenes.image(index).save(root / f"{split}2017" / name)
            mask = scenes.mask(index)
            (top, *_, bottom), (left, *_, right) = (
                np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0)
            )
            annotations.append(
                {
                    "id": index + 1,
                    "image_id": index + 1,
                    "category_id": scenes.label(index) + 1,
                    "bbox": [left, top, right + 1 - left, bottom + 1 - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": outline(mask),
                }
            )
        document = {
            "images": [
                {"id": index + 1, "file_name": name, "width": 32, "height": 32}
                for index, name in enumerate(names)
            ],
            "annotations": annotations,
            "categories": [{"id": n + 1, "name": name} for n, name in enumerate(scenes.classes)],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    return root


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave of each split the first scenes."""
    monkeypatch.setattr(FashionScenes, "__len__", lambda scenes: COUNTS[scenes.split])


@dataclass(frozen=True)
class _Place:
    data: dict[str, Path]
    threads: int = 1
    loaders: int = 0
    download: bool = False


@pytest.mark.parametrize("outline", [_runs, _squares])
def test_scenes__have_the_same_objects_in_cocos_layout(tmp_path: Path, outline: Any) -> None:
    root = _write(tmp_path / "set", outline)
    splits = zip(open_objects("set", {"set": root}), open_objects(SCENES, {}), strict=True)
    for (read, embedded), count in zip(splits, COUNTS.values(), strict=True):
        assert len(read) == len(embedded) == count
        assert read.classes == embedded.classes
        for index in range(count):
            assert read.image(index).tobytes() == embedded.image(index).tobytes()
            (labels, masks), (others, same) = read.objects(index), embedded.objects(index)
            np.testing.assert_array_equal(labels, others)
            np.testing.assert_array_equal(masks, same)
        assert read.truth() == embedded.truth()


def test_scenes__train_the_same_detector_in_cocos_layout(
    drain: Any, encoder: Path, small: Any, tmp_path: Path
) -> None:
    place = _Place({"set": _write(tmp_path / "set", _runs)})
    optim = replace(small.optim, epochs=8, base_lr=0.6, ema=None, accumulate=1)
    parent = Random(
        data=Data(name=SCENES, image_size=32),
        encoder=Encoder(patch_size=8, width=16, depth=1, heads=2),
    )
    ends = []
    for name in ("set", SCENES):
        config = replace(small, data=DetectData(name=name), regions=16, optim=optim)
        assert TRAINER.fits(config, parent, place) is None
        steps = run(
            config, seed=0, place=place, inputs=encoder, resume=None, should_stop=lambda: False
        )
        done = drain(steps)
        (tmp_path / f"of-{name}").mkdir()
        done.result.export(tmp_path / f"of-{name}")
        found = json.loads((tmp_path / f"of-{name}" / "detections.json").read_text())
        ends.append((done.result.metrics, found, done.traces))
    of_set, of_scenes = ends
    assert len(of_set[2]) > optim.epochs * COUNTS["train"] // optim.batch_size
    assert of_set[1], "nothing was found"
    assert of_set == of_scenes
