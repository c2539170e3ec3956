"""Images with maps of classes in Parquet files.

Columns `image` and `annotation`, both `struct<bytes, path>` and encoded, the latter as PNG. Beside
what the `datasets` library writes of a column, the schema's metadata may say `names` (of the
classes) and `void` (a value) of `annotation`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from hpm.data.decoding import Header, read_header, spread
from hpm.data.errors import DataError
from hpm.data.layout import Tables
from hpm.data.parquet import OpenFile, Rows, holds_images, open_file, rows_of

__all__ = ["TableMaps", "has_maps", "open_map_tables"]

_GROUPS = 4
"""Row groups that are in reach where none are held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMaps:
    """One split, and what its schema says of the annotations."""

    names: tuple[str, ...]
    void: int | None
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming file and row, where it cannot be read."""
        return self.rows.image(index)

    def annotation(self, index: int) -> tuple[bytes, str]:
        """The encoded annotation, and what it is called in a sentence."""
        encoded, named = self.rows.encoded(index, "annotation")
        return encoded, f"The annotation of row{named.removeprefix('Row')}"

    def headers(self, index: int) -> tuple[Header, Header]:
        """Those of the image and of its annotation. Raises DataError where either is no image."""
        (image, row), (map_, named) = self.rows.encoded(index), self.annotation(index)
        return (
            read_header(io.BytesIO(image), named=row),
            read_header(io.BytesIO(map_), named=named),
        )

    def reach(self) -> Sequence[int]:
        """Rows that are held in memory; else those of four groups, spread evenly."""
        if self.rows.held:
            return range(len(self))
        starts = self.rows.starts.tolist()
        groups = spread(range(len(starts) - 1), _GROUPS)
        return [row for group in groups for row in range(starts[group], starts[group + 1])]


def has_maps(tables: Tables) -> bool:
    """Whether the files have annotations in the place of labels.

    Raises:
        DataError: a file is unreadable.
    """
    columns = open_file(tables.train[0]).columns
    return "annotation" in columns and "label" not in columns


def open_map_tables(tables: Tables, split: Literal["train", "val"]) -> TableMaps:
    """One split.

    Raises:
        DataError: a file is unreadable, a column missing or of another type, there is no row, or
            the files say different things of the annotations.
    """
    files = {
        "train": [_open(path) for path in tables.train],
        "val": [_open(path) for path in tables.val],
    }
    first, *others = (file for part in files.values() for file in part)
    for other in others:
        if _said(other) != _said(first):
            raise DataError(
                f"All files must say the same classes and void of the annotations, but "
                f"{first.version.path} and {other.version.path} do not; write them anew."
            )
    names, void = _said(first)
    rows = rows_of(files[split])
    rows.hold("image")
    rows.hold("annotation")
    return TableMaps(names=names, void=void, rows=rows)


def _open(path: Path) -> OpenFile:
    file = open_file(path)
    if not (holds_images(file) and holds_images(file, "annotation")):
        got = ", ".join(f"{name}: {kind}" for name, kind in file.columns.items())
        raise DataError(
            f"{path} must have the columns image and annotation (structs with binary bytes, the "
            f"latter a PNG of classes), got {got}."
        )
    void = _said(file)[1]
    if not (void is None or (isinstance(void, int) and 0 <= void <= 255)):
        raise DataError(f"{path} must say void as a number in 0..255, got {void!r}.")
    return file


def _said(file: OpenFile) -> tuple[tuple[str, ...], int | None]:
    said = file.features.get("annotation", {})
    return tuple(said.get("names") or ()), said.get("void")
