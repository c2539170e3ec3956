"""Encoded bytes to RGB images, and a cheap look at many files before anything runs."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hpm.data.errors import DataError

__all__ = ["decode", "require_readable"]

_MOST_FILES = 20_000
_TAIL_BYTES = 4096
# How files that hold the whole image begin, and what then stands near their end.
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}


def decode(encoded: bytes, *, named: str) -> Image.Image:
    """The image in mode RGB.

    Raises:
        DataError: the bytes are no image or damaged; the text calls it `named`.
    """
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    # Pillow's plugins raise each of these on damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{named} must be a readable image: {error}.") from error


def require_readable(paths: Sequence[Path]) -> None:
    """Look for image files that cannot be decoded, at about one short read a file.

    Found are files that are absent, empty, cut off, or no images at all: a JPEG or PNG that begins
    and ends as one passes, and every other file is decoded. Damage in the middle of a file is not
    found; it ends the run that meets it. Of more than 20,000 files only every second, third, ... is
    looked at, so that it is never more than 20,000.

    Raises:
        DataError: some are unreadable; at most ten are named.
    """
    stride = max(1, -(-len(paths) // _MOST_FILES))
    bad = [path for path in paths[::stride] if not _is_readable(path)]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"All images must be readable, got {len(bad)} unreadable: "
            f"{', '.join(map(str, bad[:10]))}{more}; replace or remove them."
        )


def _is_readable(path: Path) -> bool:
    try:
        return _looks_whole(path) or bool(decode(path.read_bytes(), named=str(path)))
    except (OSError, DataError):
        return False


def _looks_whole(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = file.read()
    return any(head.startswith(start) and end in tail for start, end in _ENDS.items())
