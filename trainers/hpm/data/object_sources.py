"""Data sets whose images have objects: which one a name means, and FashionScenes as one of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as runs

from hpm.data.coco import open_coco
from hpm.data.errors import DataError, reading
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.data.layout import Annotated, Embedded, locate, no_objects
from hpm.data.objects import ObjectImages, Objects, Truth, tight_boxes

__all__ = ["SceneObjects", "open_objects"]


def open_objects(name: str, roots: Mapping[str, Path]) -> tuple[ObjectImages, ObjectImages]:
    """Training and validation split of the data set `name`.

    Raises:
        DataError: the data set is unknown, absent, unreadable, or does not say where objects are.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded():
                return (
                    SceneObjects(FashionScenes.open("train")),
                    SceneObjects(FashionScenes.open("val")),
                )
            case Annotated() as annotated:
                return open_coco(annotated)
            case _:
                raise DataError(no_objects(name, roots[name]))


@dataclass(frozen=True, slots=True)
class SceneObjects:
    """FashionScenes: the one object of each scene is its garment."""

    scenes: FashionScenes

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position here."""
        return self.scenes.classes

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> Image.Image:
        """The scene, mode RGB."""
        return self.scenes.image(index)

    def objects(self, index: int) -> Objects:
        """The garment."""
        labels = np.array([self.scenes.label(index)], dtype=np.int64)
        return Objects(labels, self.scenes.mask(index)[None])

    def truth(self) -> Truth:
        """All garments in COCO's format."""
        images, annotations = [], []
        for index in range(len(self)):
            (label,), (mask,) = self.objects(index)
            left, top, right, bottom = tight_boxes(mask[None])[0].tolist()
            images.append({"id": index + 1, "width": mask.shape[1], "height": mask.shape[0]})
            annotations.append(
                {
                    "id": index + 1,
                    "image_id": index + 1,
                    "category_id": int(label) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": runs.encode(np.asfortranarray(mask, dtype=np.uint8)),
                }
            )
        categories = [{"id": n + 1, "name": name} for n, name in enumerate(self.classes)]
        return Truth(images, categories, annotations)
