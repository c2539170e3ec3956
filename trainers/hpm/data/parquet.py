"""Images in Parquet files, as the Hugging Face `datasets` library writes them.

Columns `image: struct<bytes, path>` (encoded) and `label: int64`; the class names stand in the
schema's metadata. A small split is held encoded in memory. Of a large one, row groups are read as
they are asked for, which is slow in random order: for speed, unpack it into image folders.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hpm.data.decoding import decode
from hpm.data.errors import DataError, UnreachableError
from hpm.data.layout import Tables

__all__ = ["HELD_BYTES", "FileVersion", "ParquetImages", "labels_digest", "open_parquet"]

_Split: TypeAlias = Literal["train", "val"]

HELD_BYTES = 1 << 30
"""A split of files up to this size together is held in memory."""


class FileVersion(NamedTuple):
    """A file as it was when opened: what is cached of one version is not taken for another's."""

    path: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetImages:
    """One split, in the order of its files and rows."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[tuple[FileVersion, int], ...]
    """File and number of each row group."""
    starts: NDArray[np.int64]
    """First row of each row group, and one past the last row of all."""
    held: tuple[FileVersion, ...]
    """All files, where they are held in memory; else none."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming file and row, where it cannot be read."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[number])
        file, group = self.groups[number]
        images = _hold_images(self.held)[number] if self.held else _recent_images(file, group)
        encoded = images[row].as_py()
        return decode(encoded or b"", named=f"Row {row} of row group {group} in {file.path}")

    def label(self, index: int) -> int:
        """The image's class."""
        return int(self.labels[index])


def open_parquet(tables: Tables, split: Literal["train", "val"]) -> ParquetImages:
    """One split; the training files' metadata name the classes (else their numbers do).

    Raises:
        DataError: a file is unreadable, a column missing or of another type, a label missing or no
            class, or the files name different classes.
    """
    source = _describe(_open_all(tables), split)
    if source.held:
        _hold_images(source.held)
    return source


def labels_digest(tables: Tables) -> str:
    """SHA-256 of the labels of both splits; all is checked that `open_parquet` checks.

    Raises:
        DataError: as `open_parquet`, but for images that cannot be read.
    """
    files = _open_all(tables)
    labels = [_describe(files, split).labels for split in files]
    sizes = np.array([len(part) for part in labels], dtype=np.int64)
    return hashlib.sha256(b"".join(part.tobytes() for part in (sizes, *labels))).hexdigest()


class _File(NamedTuple):
    version: FileVersion
    schema: pa.Schema
    metadata: pq.FileMetaData
    class_names: tuple[str, ...]


_Files: TypeAlias = Mapping[_Split, list[_File]]


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        # Arrow raises OSError for damage too, but then it has no number of the system's.
        system = isinstance(error, OSError) and error.errno is not None
        kind = UnreachableError if system else DataError
        raise kind(f"{path} must be a readable Parquet file; replace it ({error}).") from error


def _open_all(tables: Tables) -> _Files:
    files: _Files = {
        "train": [_open(path) for path in tables.train],
        "val": [_open(path) for path in tables.val],
    }
    named = [file for split in files.values() for file in split if file.class_names]
    for file in named:
        if file.class_names != named[0].class_names:
            raise DataError(
                f"All files must name the same classes in the same order, but "
                f"{named[0].version.path} and {file.version.path} do not; write them anew."
            )
    return files


def _open(path: Path) -> _File:
    with _reading(path):
        status = path.stat()
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    _require_columns(path, schema)
    version = FileVersion(str(path), status.st_size, status.st_mtime_ns)
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = written.get("info", {}).get("features", {}).get("label", {}).get("names")
    return _File(version, schema, metadata, tuple(names or ()))


def _require_columns(path: Path, schema: pa.Schema) -> None:
    columns = dict(zip(schema.names, schema.types, strict=True))
    image, label = columns.get("image", pa.null()), columns.get("label", pa.null())
    at = image.get_field_index("bytes") if pa.types.is_struct(image) else -1
    kind = image.field(at).type if at >= 0 else pa.null()
    holds_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (holds_bytes and pa.types.is_integer(label)):
        got = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
        raise DataError(
            f"{path} must have the columns image (struct with binary bytes) and label (integer), "
            f"got {got}."
        )


def _describe(files: _Files, split: _Split) -> ParquetImages:
    chosen = files[split]
    versions = tuple(file.version for file in chosen)
    groups = [(file, number) for file in chosen for number in range(file.metadata.num_row_groups)]
    sizes = [file.metadata.row_group(number).num_rows for file, number in groups]
    source = ParquetImages(
        classes=_class_names(files["train"]),
        labels=_labels(chosen),
        groups=tuple((file.version, number) for file, number in groups),
        starts=np.cumsum([0, *sizes], dtype=np.int64),
        held=versions if sum(file.num_bytes for file in versions) <= HELD_BYTES else (),
    )
    _require_labels(source, versions)
    return source


def _class_names(training: list[_File]) -> tuple[str, ...]:
    if names := next((file.class_names for file in training if file.class_names), None):
        return names
    return tuple(map(str, range(int(_labels(training).max(initial=-1)) + 1)))


def _labels(files: list[_File]) -> NDArray[np.int64]:
    return np.concatenate([_read_labels(file.version.path) for file in files])


def _read_labels(path: str) -> NDArray[np.int64]:
    with _reading(path), pq.ParquetFile(path) as file:
        labels = file.read(["label"], use_threads=False)["label"].combine_chunks()
    if labels.null_count:
        raise DataError(
            f"{path} must have a label in every row, got {labels.null_count} without one."
        )
    # Not `to_numpy`, which imports pandas where it is installed.
    return np.from_dlpack(labels).astype(np.int64)


def _require_labels(source: ParquetImages, files: tuple[FileVersion, ...]) -> None:
    labels, most = source.labels, len(source.classes) - 1
    where = ", ".join(file.path for file in files[:3])
    if len(labels) == 0:
        raise DataError(f"A split must have at least one image, got none in {where}.")
    if labels.min() < 0 or labels.max() > most:
        raise DataError(
            f"Labels must be in 0..{most} (the classes of the training files), "
            f"got {labels.min()}..{labels.max()} in {where}."
        )


def _read_images(file: FileVersion, group: int) -> pa.BinaryArray:
    with _reading(file.path), pq.ParquetFile(file.path) as opened:
        # Without threads: Arrow's pool does not survive the fork into a loader process.
        rows = opened.read_row_group(group, ["image.bytes"], use_threads=False)
        return rows["image"].combine_chunks().field("bytes")


_recent_images = lru_cache(maxsize=8)(_read_images)


# The two splits of one data set.
@lru_cache(maxsize=2)
def _hold_images(files: tuple[FileVersion, ...]) -> tuple[pa.BinaryArray, ...]:
    return tuple(images for file in files for images in _read_file(file))


def _read_file(file: FileVersion) -> Iterator[pa.BinaryArray]:
    with _reading(file.path), pq.ParquetFile(file.path) as opened:
        num_groups = opened.num_row_groups
    for group in range(num_groups):
        yield _read_images(file, group)
