"""What identifies a data set's content, in seconds.

A fingerprint goes into every result's identity, so it must be quick to take (planning waits for it)
and must not depend on where the data lie.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from hpm.data.annotations import count_trained
from hpm.data.decoding import require_readable
from hpm.data.errors import DataError, reading
from hpm.data.fashion_scenes.manifest import read_manifest, read_source
from hpm.data.layout import (
    Annotated,
    Embedded,
    Folders,
    ImageFile,
    Maps,
    Tables,
    image_files,
    locate,
    map_files,
)

__all__ = ["file_digest", "fingerprint"]

_MIB = 1 << 20
_HASHED_BYTES = 512 * _MIB
_HASHED_FILES = 100_000
_PICTURES = (".jpeg", ".jpg", ".png")
_MAGIC = b"PAR1"


def fingerprint(name: str, roots: Mapping[str, Path]) -> str:
    """SHA-256 over both splits of a data set; the same content elsewhere has the same one.

    It covers, of FashionScenes, the digests of its source files and rendered images; of folders,
    every image's relative path and content, and every annotation's; of Parquet files, their names
    and content; of COCO's layout, the annotations' content and every image's name and content.

    Of sets of more than 512 MiB (of folders: or 100,000 images) the content is not read in full.
    Folders (also COCO's) then count by every image's path and size; Parquet files by their labels,
    sizes and first and last MiB. An image replaced there by another of equal size is therefore
    taken for the same.

    What is plainly unreadable is reported now, before anything runs: see `require_readable` for
    images; an image without its annotation; Parquet files with labels, but without the columns and
    classes that `open_parquet` asks for; wrong annotations in COCO's layout. `hpm.data.serving`
    says whether a data set serves a stage.

    Raises:
        DataError: the data set is unknown, absent, laid out otherwise, or has unreadable files.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded():
                manifest = read_manifest()
                for file in manifest.sources:
                    read_source(file)
                return _digest("fashion-scenes", manifest.sources, manifest.rendered)
            case Folders(train=train, val=val):
                return _digest("folders", *_list_folders(train, val))
            case Tables() as tables:
                return _digest("parquet", *_list_tables(tables))
            case Maps(root):
                return _digest("maps", *_list_maps(root))
            case Annotated() as annotated:
                return _digest("coco", *_list_annotated(annotated))
            case other:
                assert_never(other)


def _digest(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _list_folders(*splits: Path) -> list[list[tuple[str, int | str]]]:
    files = [image_files(split) for split in splits]
    for split, found in zip(splits, files, strict=True):
        require_readable([split / file.path for file in found])
    sizes = [file.num_bytes for found in files for file in found]
    whole = sum(sizes) <= _HASHED_BYTES and len(sizes) <= _HASHED_FILES

    def identify(split: Path, file: ImageFile) -> tuple[str, int | str]:
        return file.path, file_digest(split / file.path) if whole else file.num_bytes

    return [
        [identify(split, file) for file in found]
        for split, found in zip(splits, files, strict=True)
    ]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        UnreachableError: the system refuses to read it.
    """
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_annotated(annotated: Annotated) -> list[object]:
    count_trained(annotated)
    listed: list[object] = []
    for folder, file in (
        (annotated.train, annotated.train_file),
        (annotated.val, annotated.val_file),
    ):
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        whole = sum(sizes.values()) <= _HASHED_BYTES and len(sizes) <= _HASHED_FILES
        images = [(n, file_digest(folder / n) if whole else sizes[n]) for n in sorted(sizes)]
        require_readable([folder / name for name in sizes if name.lower().endswith(_PICTURES)])
        listed += [images, file_digest(file)]
    return listed


def _list_tables(tables: Tables) -> list[object]:
    # pyarrow is needed by Parquet sets alone; planning another need not wait for its import.
    from hpm.data.map_tables import has_maps
    from hpm.data.parquet import labels_digest

    outlines = _outlines(tables)
    return outlines if has_maps(tables) else [*outlines, labels_digest(tables)]


def _list_maps(root: Path) -> list[object]:
    splits = [map_files(root, split) for split in ("train", "val")]
    files = [file for split in splits for file in split]
    for paths in ([file.image for file in files], [file.annotation for file in files]):
        require_readable([root / path for path in paths])
    size = sum(file.image_bytes + file.annotation_bytes for file in files)
    if size > _HASHED_BYTES or 2 * len(files) > _HASHED_FILES:
        return [splits]
    return [
        [
            (file.image, file_digest(root / file.image), file_digest(root / file.annotation))
            for file in split
        ]
        for split in splits
    ]


def _outlines(tables: Tables) -> list[object]:
    splits = (tables.train, tables.val)
    whole = sum(path.stat().st_size for split in splits for path in split) <= _HASHED_BYTES
    return [[_outline(path, whole) for path in split] for split in splits]


def _outline(path: Path, whole: bool) -> tuple[str, int, str]:
    num_bytes = path.stat().st_size
    with reading(path), path.open("rb") as file:
        first = file.read(_MIB)
        file.seek(max(0, num_bytes - _MIB))
        last = file.read()
    if not (first.startswith(_MAGIC) and last.endswith(_MAGIC) and num_bytes >= 12):
        raise DataError(f"{path} must be a whole Parquet file, got another kind or a part of one.")
    digest = file_digest(path) if whole else hashlib.sha256(first + last).hexdigest()
    return path.name, num_bytes, digest
