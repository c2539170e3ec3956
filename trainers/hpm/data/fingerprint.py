"""What identifies a data set's content, at the cost of a directory listing.

A fingerprint goes into every result's identity, so it must be quick to take (planning waits for it)
and must not depend on where the data lie.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from hpm.data.decoding import require_readable
from hpm.data.errors import DataError
from hpm.data.fashion_scenes.manifest import read_manifest, read_source
from hpm.data.layout import Embedded, Folders, Tables, image_files, locate

__all__ = ["fingerprint"]

_MIB = 1 << 20
_MAGIC = b"PAR1"


def fingerprint(name: str, roots: Mapping[str, Path]) -> str:
    """SHA-256 over both splits of a data set; the same content elsewhere has the same one.

    It covers, of FashionScenes, the digests of its source files and rendered images; of folders,
    every image's relative path and size; of Parquet files, their sizes and first and last MiB (the
    footer, at the end, says where each piece of what is between begins and ends). An image replaced
    by another of equal size is therefore taken for the same.

    What is plainly unreadable is reported now, before anything runs: see `require_readable` for
    images; a Parquet file must begin and end as one.

    Raises:
        DataError: the data set is unknown, absent, laid out otherwise, or has unreadable files.
    """
    match locate(name, roots):
        case Embedded():
            manifest = read_manifest()
            for file in manifest.sources:
                read_source(file)
            return _digest("fashion-scenes", manifest.sources, manifest.rendered)
        case Folders(train=train, val=val):
            return _digest("folders", *_list_folders(train, val))
        case Tables(train=train_files, val=val_files):
            return _digest("parquet", *([_outline(f) for f in s] for s in (train_files, val_files)))
        case other:
            assert_never(other)


def _digest(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _list_folders(*splits: Path) -> list[list[tuple[str, int]]]:
    files = [image_files(split) for split in splits]
    for split, found in zip(splits, files, strict=True):
        require_readable([split / file.path for file in found])
    return [[(file.path, file.num_bytes) for file in found] for found in files]


def _outline(path: Path) -> tuple[str, int, str]:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_MIB)
        file.seek(max(0, num_bytes - _MIB))
        last = file.read()
    if not (first.startswith(_MAGIC) and last.endswith(_MAGIC) and num_bytes >= 12):
        raise DataError(f"{path} must be a whole Parquet file, got another kind or a part of one.")
    return path.name, num_bytes, hashlib.sha256(first + last).hexdigest()
