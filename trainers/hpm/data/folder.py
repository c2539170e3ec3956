"""Images as files, in ImageNet's layout: `train/<class>/*.jpg` and `val/<class>/*.jpg`."""

import os
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpm.data.decoding import decode
from hpm.data.errors import DataError, UnreachableError
from hpm.data.layout import Folders, image_files

__all__ = ["FolderImages", "open_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImages:
    """One split of image files, sorted by class and path."""

    root: Path
    classes: tuple[str, ...]
    paths: NDArray[np.bytes_]
    """Relative to `root`; an array, since loader processes copy a list of a million objects."""
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming the file, where it cannot be read."""
        path = self.root / os.fsdecode(self.paths[index])
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise UnreachableError(f"{path} cannot be read: {error.strerror}.") from error
        return decode(encoded, named=str(path))

    def label(self, index: int) -> int:
        """The image's class."""
        return int(self.labels[index])


def open_folder(folders: Folders, split: Literal["train", "val"]) -> FolderImages:
    """One split; the training split's class folders, sorted by name, number the classes.

    Raises:
        DataError: a class has no image, or the validation split has other classes.
    """
    root = folders.train if split == "train" else folders.val
    files = image_files(root)
    classes = tuple(name for name, _ in groupby(file.class_name for file in files))
    if split == "val":
        _require_same(classes, folders)
    numbers = {name: number for number, name in enumerate(classes)}
    return FolderImages(
        root=root,
        classes=classes,
        paths=np.array([os.fsencode(file.path) for file in files]),
        labels=np.array([numbers[file.class_name] for file in files], dtype=np.int64),
    )


def _require_same(classes: tuple[str, ...], folders: Folders) -> None:
    with os.scandir(folders.train) as entries:
        trained = {entry.name for entry in entries if entry.is_dir()}
    if differing := sorted(trained.symmetric_difference(classes)):
        raise DataError(
            f"{folders.train} and {folders.val} must hold the same classes, but only one of them "
            f"has {', '.join(differing[:10])}."
        )
