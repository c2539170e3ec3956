"""Encoded bytes to RGB images, and cheap looks at many files before anything runs."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from hpm.data.errors import DataError

__all__ = ["DAMAGES", "Header", "decode", "read_header", "require_readable", "spread"]

DAMAGES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow's plugins raise on damaged files."""

_MOST_FILES = 20_000
_TAIL_BYTES = 4096
# How files that hold the whole image begin, and what then stands near their end.
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}


class Header(NamedTuple):
    """What an image file says at its beginning."""

    size: tuple[int, int]
    """Width and height."""
    mode: str
    named: str
    """What the image is called in a sentence."""


def decode(encoded: bytes, *, named: str) -> Image.Image:
    """The image in mode RGB.

    Raises:
        DataError: the bytes are no image or damaged; the text calls it `named`.
    """
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except DAMAGES as error:
        raise DataError(f"{named} must be a readable image: {error}.") from error


def read_header(file: BinaryIO, *, named: str) -> Header:
    """Size and mode of an image, of which only the beginning is read.

    Raises:
        DataError: this is no image; the text calls it `named`.
        OSError: the system refuses to read it.
    """
    try:
        with Image.open(file) as image:
            return Header(image.size, image.mode, named)
    except DAMAGES as error:
        # Of damage Pillow says no number of the system's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{named} must be a readable image: {error}.") from error


def spread(indices: Sequence[int], most: int) -> Sequence[int]:
    """Up to so many of them, evenly from the first to the last."""
    if len(indices) <= most:
        return indices
    return [indices[at * (len(indices) - 1) // (most - 1)] for at in range(most)]


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
