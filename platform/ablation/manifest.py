"""What a set of files must be, and the sealed small objects that say so.

A checkpoint or an outcome exists when its sealed object does. The seal is the SHA-256 of the rest
of the object, so one that was cut short or altered is never taken for the truth.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

from ablation.storage import Storage, StorageError, Stored
from ablation.typed import loads, typed

__all__ = [
    "DamageError",
    "Manifest",
    "compare",
    "fetch",
    "manifest_from_json",
    "manifest_to_json",
    "read_sound",
    "seal",
    "unseal",
    "upload_folder",
    "verify",
]

_T = TypeVar("_T")

Manifest: TypeAlias = Mapping[str, Stored]
"""Files by their path in a folder."""


class DamageError(StorageError):
    """Something in the storage is not what was written there."""


def upload_folder(storage: Storage, source: Path, path: str, *, check: bool = False) -> Manifest:
    """Copy every file below a local folder, see `Storage.upload`; empty folders are not kept."""
    files = sorted(file for file in source.rglob("*") if file.is_file())
    names = [file.relative_to(source).as_posix() for file in files]
    return {
        name: storage.upload(file, f"{path}/{name}", check=check)
        for name, file in zip(names, files, strict=True)
    }


def verify(storage: Storage, path: str, manifest: Manifest) -> None:
    """Read every file where it lies.

    Raises DamageError for the first one that is missing or differs.
    """
    for name, stored in manifest.items():
        _get(storage, f"{path}/{name}", stored, storage.measure)


def fetch(storage: Storage, path: str, manifest: Manifest, into: Path) -> Path:
    """A local folder with the files, verified: to be read only.

    It is the storage's own folder where that is local, else a download below `into`.
    Raises DamageError for the first file that is missing or differs.
    """
    if storage.local is not None:
        verify(storage, path, manifest)
        return storage.local / path
    for name, stored in manifest.items():
        _get(storage, f"{path}/{name}", stored, partial(storage.download, target=into / name))
    into.mkdir(parents=True, exist_ok=True)
    return into


def _get(storage: Storage, path: str, must: Stored, get: Callable[[str], Stored | None]) -> None:
    """Get a file that must be sound; a second time where it is not, for it may have been the way.

    Raises DamageError where it is missing or differs.
    """
    got = get(path)
    compare(f"{storage.uri}/{path}", must, got if got == must else get(path))


def read_sound(storage: Storage, path: str, parse: Callable[[bytes], _T]) -> _T | None:
    """What `parse` makes of a small file, None where there is no such file.

    It is read a second time where that cannot be parsed: it may have been damaged on the way, or
    overwritten meanwhile. Raises what `parse` raises then.
    """
    content = storage.read(path)
    try:
        return None if content is None else parse(content)
    except (DamageError, ValueError, KeyError, TypeError, AttributeError):
        content = storage.read(path)
        return None if content is None else parse(content)


def compare(name: str, must: Stored, got: Stored | None) -> None:
    """Hold a file against what it must be.

    Raises DamageError where it is missing (None) or differs.
    """
    if got is None:
        raise DamageError(f"{name} must be there, but it is missing.")
    if got.size != must.size:
        raise DamageError(f"{name} must have {must.size} bytes, got {got.size}.")
    if got != must:
        raise DamageError(f"{name} must have the bytes that were written, got another checksum.")


def manifest_to_json(manifest: Manifest) -> dict[str, dict[str, int | str]]:
    """A manifest as JSON values, in its order."""
    return {name: {"size": s.size, "sha256": s.sha256} for name, s in manifest.items()}


def manifest_from_json(value: Mapping[str, Mapping[str, Any]]) -> Manifest:
    """The inverse of `manifest_to_json`.

    Raises ValueError for a path that leaves its folder, or is none, and for anything else.
    """
    manifest = typed(dict[str, Stored], value)
    for name in manifest:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"a file's path must stay in its folder, got {name!r}.")
    return manifest


def seal(body: Mapping[str, Any]) -> bytes:
    """A JSON object with its own checksum as the last entry."""
    return (json.dumps({**body, "seal": _checksum(body)}, indent=1, allow_nan=False)).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """The inverse of `seal`.

    Raises ValueError where the content is not what was sealed.
    """
    body = loads(content)
    if not isinstance(body, dict) or body.pop("seal", None) != _checksum(body):
        raise ValueError("its checksum differs")
    return body


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
