"""Images in Parquet files, as the Hugging Face `datasets` library writes them.

Columns `image: struct<bytes, path>` (encoded) and `label: int64`; the class names stand in the
schema's metadata. A small split is held encoded in memory. Of a large one, row groups are read as
they are asked for, which is slow in random order: for speed, unpack it into image folders. A column
`annotation` beside the images is `hpm.data.map_tables`'s affair, which reads rows with this module.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hpm.data.decoding import decode
from hpm.data.descriptions import read_descriptions
from hpm.data.errors import DataError, UnreachableError
from hpm.data.layout import Tables

__all__ = [
    "HELD_BYTES",
    "FileVersion",
    "OpenFile",
    "ParquetImages",
    "Rows",
    "holds_images",
    "labels_digest",
    "open_file",
    "open_parquet",
    "read_labels",
    "rows_of",
]

_Split: TypeAlias = Literal["train", "val"]

HELD_BYTES = 1 << 30
"""A split of files up to this size together is held in memory."""


class FileVersion(NamedTuple):
    """A file as it was when opened: what is cached of one version is not taken for another's."""

    path: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Encoded images of one split, in the order of its files and rows."""

    groups: tuple[tuple[FileVersion, int], ...]
    """File and number of each row group."""
    starts: NDArray[np.int64]
    """First row of each row group, and one past the last row of all."""
    held: tuple[FileVersion, ...]
    """All files, where they are held in memory; else none."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming file and row, where it cannot be read."""
        encoded, named = self.encoded(index)
        return decode(encoded, named=named)

    def encoded(self, index: int, column: str = "image") -> tuple[bytes, str]:
        """What a column (`image` or `annotation`) holds in a row, and the row in words."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[number])
        file, group = self.groups[number]
        found = _HOLD[column](self.held)[number] if self.held else _recent(file, group, column)
        return found[row].as_py() or b"", f"Row {row} of row group {group} in {file.path}"

    def hold(self, column: str = "image") -> None:
        """Read a column now that is to be held."""
        if self.held:
            _HOLD[column](self.held)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetImages:
    """One split with labels."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    rows: Rows

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming file and row, where it cannot be read."""
        return self.rows.image(index)

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
    source.rows.hold()
    return source


def read_labels(tables: Tables) -> dict[Literal["train", "val"], NDArray[np.int64]]:
    """The labels of each split; all is checked that `open_parquet` checks.

    Raises:
        DataError: as `open_parquet`, but for images that cannot be read.
    """
    files = _open_all(tables)
    return {split: _describe(files, split).labels for split in files}


def labels_digest(tables: Tables) -> str:
    """SHA-256 of the labels of both splits. Raises DataError as `read_labels`."""
    labels = list(read_labels(tables).values())
    sizes = np.array([len(part) for part in labels], dtype=np.int64)
    return hashlib.sha256(b"".join(part.tobytes() for part in (sizes, *labels))).hexdigest()


class OpenFile(NamedTuple):
    """What a file says of itself."""

    version: FileVersion
    columns: Mapping[str, pa.DataType]
    metadata: pq.FileMetaData
    features: Mapping[str, Mapping[str, Any]]
    """What the `datasets` library wrote of each column, such as the names of its classes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the labels, where it names any."""
        return tuple(self.features.get("label", {}).get("names") or ())


_Files: TypeAlias = Mapping[_Split, list[OpenFile]]


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


def open_file(path: Path) -> OpenFile:
    """The file's own description. Raises DataError where it, or its metadata, cannot be read."""
    with _reading(path):
        status = path.stat()
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    return OpenFile(
        FileVersion(str(path), status.st_size, status.st_mtime_ns),
        dict(zip(schema.names, schema.types, strict=True)),
        metadata,
        read_descriptions(schema.metadata, path),
    )


def holds_images(file: OpenFile, column: str = "image") -> bool:
    """Whether the column is a struct with encoded images, as binary `bytes`."""
    image = file.columns.get(column, pa.null())
    at = image.get_field_index("bytes") if pa.types.is_struct(image) else -1
    kind = image.field(at).type if at >= 0 else pa.null()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _open(path: Path) -> OpenFile:
    file = open_file(path)
    if not (holds_images(file) and pa.types.is_integer(file.columns.get("label", pa.null()))):
        got = ", ".join(f"{name}: {kind}" for name, kind in file.columns.items())
        raise DataError(
            f"{path} must have the columns image (struct with binary bytes) and label (integer), "
            f"got {got}."
        )
    return file


def rows_of(files: Sequence[OpenFile]) -> Rows:
    """The rows of a split's files.

    Raises:
        DataError: there are none.
    """
    versions = tuple(file.version for file in files)
    groups = [(file, number) for file in files for number in range(file.metadata.num_row_groups)]
    sizes = [file.metadata.row_group(number).num_rows for file, number in groups]
    if sum(sizes) == 0:
        where = ", ".join(file.path for file in versions[:3])
        raise DataError(f"A split must have at least one image, got none in {where}.")
    return Rows(
        groups=tuple((file.version, number) for file, number in groups),
        starts=np.cumsum([0, *sizes], dtype=np.int64),
        held=versions if sum(file.num_bytes for file in versions) <= HELD_BYTES else (),
    )


def _describe(files: _Files, split: _Split) -> ParquetImages:
    rows = rows_of(files[split])
    source = ParquetImages(
        classes=_class_names(files["train"]), labels=_labels(files[split]), rows=rows
    )
    _require_labels(source, files[split])
    return source


def _class_names(training: list[OpenFile]) -> tuple[str, ...]:
    if names := next((file.class_names for file in training if file.class_names), None):
        return names
    return tuple(map(str, range(int(_labels(training).max(initial=-1)) + 1)))


def _labels(files: list[OpenFile]) -> NDArray[np.int64]:
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


def _require_labels(source: ParquetImages, files: list[OpenFile]) -> None:
    labels, most = source.labels, len(source.classes) - 1
    where = ", ".join(file.version.path for file in files[:3])
    if labels.min() < 0 or labels.max() > most:
        raise DataError(
            f"Labels must be in 0..{most} (the classes of the training files), "
            f"got {labels.min()}..{labels.max()} in {where}."
        )


def _read_group(file: FileVersion, group: int, column: str) -> pa.BinaryArray:
    with _reading(file.path), pq.ParquetFile(file.path) as opened:
        # Without threads: Arrow's pool does not survive the fork into a loader process.
        rows = opened.read_row_group(group, [f"{column}.bytes"], use_threads=False)
        return rows[column].combine_chunks().field("bytes")


_recent = lru_cache(maxsize=16)(_read_group)


def _read_files(column: str, files: tuple[FileVersion, ...]) -> tuple[pa.BinaryArray, ...]:
    return tuple(images for file in files for images in _read_file(file, column))


def _read_file(file: FileVersion, column: str) -> Iterator[pa.BinaryArray]:
    with _reading(file.path), pq.ParquetFile(file.path) as opened:
        num_groups = opened.num_row_groups
    for group in range(num_groups):
        yield _read_group(file, group, column)


# The two splits of one data set.
_hold_images = lru_cache(maxsize=2)(partial(_read_files, "image"))
_hold_annotations = lru_cache(maxsize=2)(partial(_read_files, "annotation"))
_HOLD: Final = {"image": _hold_images, "annotation": _hold_annotations}
