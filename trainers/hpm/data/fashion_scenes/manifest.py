"""What FashionScenes is made of and what must come out: SHA-256 digests, held in manifest.json."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpm.data.errors import DataError

__all__ = ["Manifest", "read_manifest", "read_source"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Hexadecimal SHA-256 digests."""

    sources: Mapping[str, str]
    """By file name in `assets/`."""
    rendered: Mapping[str, str]
    """By split: the bytes of all images, then masks, then labels."""


def read_manifest() -> Manifest:
    """The manifest that comes with the package."""
    return Manifest(**json.loads((_HERE / "manifest.json").read_text(encoding="utf-8")))


def read_source(file: str) -> bytes:
    """The bytes of one source file.

    Raises:
        DataError: the installed file is absent or not the one in the manifest.
    """
    path = _HERE / "assets" / file
    expected = read_manifest().sources[file]
    if not path.is_file() or hashlib.sha256(content := path.read_bytes()).hexdigest() != expected:
        raise DataError(f"{path} must be the file that came with hpm; reinstall the package.")
    return content
