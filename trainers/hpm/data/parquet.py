"""Images in Parquet files, as the Hugging Face `datasets` library writes them.

Columns `image: struct<bytes, path>` (encoded) and `label: int64`; the class names stand in the
schema's metadata. A small split is held encoded in memory. Of a large one, row groups are read as
they are asked for, which is slow in random order: for speed, unpack it into image folders.
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hpm.data.decoding import decode
from hpm.data.errors import DataError
from hpm.data.layout import Tables

__all__ = ["HELD_BYTES", "ParquetImages", "open_parquet"]

HELD_BYTES = 1 << 30
"""A split of files up to this size together is held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetImages:
    """One split, in the order of its files and rows."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[tuple[str, int], ...]
    """File and number of each row group."""
    starts: NDArray[np.int64]
    """First row of each row group, and one past the last row of all."""
    held: bool

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming file and row, where it cannot be read."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[number])
        file, group = self.groups[number]
        read = _hold_images if self.held else _recent_images
        encoded = read(file, group)[row].as_py()
        return decode(encoded or b"", named=f"Row {row} of row group {group} in {file}")

    def label(self, index: int) -> int:
        """The image's class."""
        return int(self.labels[index])


def open_parquet(tables: Tables, split: Literal["train", "val"]) -> ParquetImages:
    """One split; the training files' metadata name the classes (else their numbers do).

    Raises:
        DataError: a file is unreadable, a column missing or of another type, or a label no class.
    """
    files = [_open(path) for path in (tables.train if split == "train" else tables.val)]
    groups = [(file, number) for file in files for number in range(file.metadata.num_row_groups)]
    sizes = [file.metadata.row_group(number).num_rows for file, number in groups]
    source = ParquetImages(
        classes=_class_names([_open(path) for path in tables.train]),
        labels=_labels(files),
        groups=tuple((str(file.path), number) for file, number in groups),
        starts=np.cumsum([0, *sizes], dtype=np.int64),
        held=sum(file.path.stat().st_size for file in files) <= HELD_BYTES,
    )
    _require_labels(source, files)
    if source.held:
        for file, number in source.groups:
            _hold_images(file, number)
    return source


class _File(NamedTuple):
    path: Path
    schema: pa.Schema
    metadata: pq.FileMetaData


def _open(path: Path) -> _File:
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} must be a readable Parquet file: {error}") from error
    columns = dict(zip(schema.names, schema.types, strict=True))
    image, label = columns.get("image", pa.null()), columns.get("label", pa.null())
    holds_bytes = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not (holds_bytes and pa.types.is_integer(label)):
        got = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
        raise DataError(
            f"{path} must have the columns image (struct with bytes) and label (integer), "
            f"got {got}."
        )
    return _File(path, schema, metadata)


def _class_names(training: list[_File]) -> tuple[str, ...]:
    written = json.loads((training[0].schema.metadata or {}).get(b"huggingface", b"{}"))
    names = written.get("info", {}).get("features", {}).get("label", {}).get("names")
    return tuple(names or map(str, range(int(_labels(training).max()) + 1)))


def _labels(files: list[_File]) -> NDArray[np.int64]:
    columns = [pq.read_table(file.path, columns=["label"])["label"].to_numpy() for file in files]
    return np.concatenate(columns).astype(np.int64)


def _require_labels(source: ParquetImages, files: list[_File]) -> None:
    labels, most = source.labels, len(source.classes) - 1
    where = ", ".join(str(file.path) for file in files[:3])
    if len(labels) == 0:
        raise DataError(f"A split must have at least one image, got none in {where}.")
    if labels.min() < 0 or labels.max() > most:
        raise DataError(
            f"Labels must be in 0..{most} (the classes of the training files), "
            f"got {labels.min()}..{labels.max()} in {where}."
        )


def _read_images(file: str, group: int) -> pa.BinaryArray:
    try:
        # Without threads: Arrow's pool does not survive the fork into a loader process.
        rows = pq.ParquetFile(file).read_row_group(group, ["image.bytes"], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"Row group {group} of {file} cannot be read: {error}") from error
    return rows["image"].combine_chunks().field("bytes")


_hold_images = cache(_read_images)
_recent_images = lru_cache(maxsize=8)(_read_images)
