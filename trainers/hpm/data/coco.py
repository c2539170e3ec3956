"""Images with objects in COCO's layout; polygons and runs become masks by pycocotools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as runs

from hpm.data.annotations import Annotations, read_both
from hpm.data.decoding import decode
from hpm.data.errors import DataError, UnreachableError
from hpm.data.layout import Annotated
from hpm.data.objects import Objects, Truth

__all__ = ["CocoImages", "open_coco"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoImages:
    """One split, or those of its images that have an object."""

    folder: Path
    annotations: Annotations
    chosen: NDArray[np.int64]
    """Positions in `annotations`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position here."""
        return self.annotations.classes

    def __len__(self) -> int:
        return len(self.chosen)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming the file, where it cannot be read."""
        number = self.chosen[index]
        path = self.folder / str(self.annotations.paths[number])
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise UnreachableError(f"{path} cannot be read: {error.strerror}.") from error
        image = decode(encoded, named=str(path))
        width, height = self.annotations.sizes[number].tolist()
        if image.size != (width, height):
            raise DataError(
                f"{path} must have the size that {self.annotations.file} says, {width} x "
                f"{height}, got {image.width} x {image.height}; replace one of the two."
            )
        return image

    def objects(self, index: int) -> Objects:
        """Classes and masks of the image's objects; crowds are none."""
        held, number = self.annotations, self.chosen[index]
        width, height = held.sizes[number].tolist()
        own = range(int(held.starts[number]), int(held.starts[number + 1]))
        singles = [a for a in own if not held.crowd[a]]
        masks = [runs.decode(self._runs(a, height, width)) for a in singles]
        return Objects(
            labels=held.labels[singles],
            masks=np.array(masks, dtype=np.bool_).reshape(-1, height, width),
        )

    def truth(self) -> Truth:
        """All annotations in COCO's format, crowds as such."""
        held = self.annotations
        images, annotations = [], []
        for number in self.chosen.tolist():
            width, height = held.sizes[number].tolist()
            image_id = int(held.image_ids[number])
            images.append({"id": image_id, "width": width, "height": height})
            annotations += [
                {
                    # From 1: to COCOeval 0 is no annotation.
                    "id": a + 1,
                    "image_id": image_id,
                    "category_id": held.category_ids[held.labels[a]],
                    "bbox": held.boxes[a].tolist(),
                    "area": float(held.areas[a]),
                    "iscrowd": int(held.crowd[a]),
                    "segmentation": self._runs(a, height, width),
                }
                for a in range(int(held.starts[number]), int(held.starts[number + 1]))
            ]
        categories = zip(held.category_ids, held.classes, strict=True)
        return Truth(images, [{"id": i, "name": name} for i, name in categories], annotations)

    def _runs(self, number: int, height: int, width: int) -> dict[str, Any]:
        """The annotation's mask, run-length encoded and compressed."""
        outline: Any = self.annotations.outline(number)
        if isinstance(outline, list):
            outline = runs.merge(runs.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            outline = runs.frPyObjects(outline, height, width)
        found: dict[str, Any] = outline
        return found


def open_coco(layout: Annotated) -> tuple[CocoImages, CocoImages]:
    """The training split, of which only images that have an object (as officially), and the other.

    Raises:
        DataError: an annotation file is not as it should be, or the splits have other categories.
    """
    train, val = read_both(layout)
    everything = np.arange(len(val.image_ids))
    return (
        CocoImages(folder=layout.train, annotations=train, chosen=train.with_object()),
        CocoImages(folder=layout.val, annotations=val, chosen=everything),
    )
