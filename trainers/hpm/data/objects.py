"""A data set as a detector's loaders see it: images, and where which objects are in them.

Letters: O objects of an image of height H and width W.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["ObjectImages", "Objects", "Truth", "tight_boxes"]


class Objects(NamedTuple):
    """What is in one image."""

    labels: NDArray[np.int64]
    """[O], from 0."""
    masks: NDArray[np.bool_]
    """[O, H, W], True on the object."""


class Truth(NamedTuple):
    """All that is known of a split, in COCO's format; images and categories in our order."""

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


class ObjectImages(Protocol):
    """One split. Indices run from 0 to len - 1; an object of this kind can be pickled."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position here."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming the image, where it cannot be read."""
        ...

    def objects(self, index: int) -> Objects:
        """The image's objects."""
        ...

    def truth(self) -> Truth:
        """What detections are compared with."""
        ...


def tight_boxes(masks_OHW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[O, 4], left, top, right and bottom edge of each mask, none of which may be empty."""
    boxes = np.zeros((len(masks_OHW), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks_OHW, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
