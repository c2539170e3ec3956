"""A folder on any storage that pyarrow.fs reaches: the only module that knows pyarrow.

Object stores have no rename: a single PUT is what is atomic there. On a local disk a file appears
by renaming a finished one, and its bytes are on the disk before its name is.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from pyarrow import fs as arrow_fs

__all__ = ["Storage", "StorageError", "Stored", "stored_of"]

_CHUNK = 4 * 2**20  # bytes


class StorageError(Exception):
    """The storage does not do or does not hold what it must; the text is for people."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file must be: its size in bytes and its SHA-256."""

    size: int
    sha256: str


def stored_of(content: bytes) -> Stored:
    """Size and checksum of a small file's content."""
    return Stored(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The folder `root` of `files`; `local` is the same folder where it lies on this machine.

    Paths are relative, with forward slashes. Every method raises StorageError where the storage
    refuses.
    """

    files: Any
    root: str
    uri: str
    """How people call it; holds no password."""
    local: Path | None = None

    @classmethod
    def open(cls, uri: str | Path) -> "Storage":
        """The folder at a local path or at a URI such as `s3://bucket/folder`; touches nothing."""
        if isinstance(uri, Path) or "://" not in uri:
            return cls._at(Path(uri))
        try:
            files, root = arrow_fs.FileSystem.from_uri(_with_single_puts(uri))
        except (OSError, ValueError) as error:
            reason = _line(error).replace(_with_single_puts(uri), _public(uri))
            raise StorageError(
                f"The storage must be a local folder or a URI that pyarrow can open, such as "
                f"s3://bucket/folder, got {_public(uri)} ({reason}). Check the address, the "
                f"region and the credentials."
            ) from None  # the cause repeats the URI with its keys
        if isinstance(files, arrow_fs.LocalFileSystem):
            return cls._at(Path(root))
        return cls(files=files, root=root.rstrip("/"), uri=_public(uri))

    @classmethod
    def _at(cls, folder: Path) -> "Storage":
        folder = folder.expanduser().absolute()
        files = arrow_fs.LocalFileSystem()
        return cls(files=files, root=str(folder), uri=str(folder), local=folder)

    def check_writable(self, keep: Mapping[str, bytes]) -> None:
        """Write small files to `keep` and one more, read them back and delete the last."""
        probe = f".probe-{secrets.token_hex(8)}"
        try:
            for path, content in keep.items():
                self.write(path, content)
            self.write(probe, probe.encode())
            self.remove(probe)
        except StorageError as error:
            raise StorageError(
                f"The storage must be a folder that can be written, got {self.uri}: {error} "
                f"Choose another folder or bucket, or get permission to write to this one."
            ) from error

    def read(self, path: str) -> bytes | None:
        """The content of a small file, None where there is no such file."""
        with self._asked("read", path):
            try:
                with self.files.open_input_stream(self._full(path)) as stream:
                    content: bytes = stream.read()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return content

    def write(self, path: str, content: bytes, *, durable: bool = True) -> Stored:
        """Replace a small file by `content` at once: a reader sees the old file or the new one.

        What is not `durable` may be lost where the machine loses its power.
        """
        at = path if self.local is None else f"{path}.{secrets.token_hex(4)}.tmp"
        with self._asked("write", path):
            with self._sink(at) as stream:
                stream.write(content)
            if at != path:
                if durable:
                    self._settle(at)
                self.files.move(self._full(at), self._full(path))
        if self.read(path) != content:
            raise StorageError(f"{self._name(path)} must hold what was written, got other bytes.")
        return stored_of(content)

    def upload(self, source: Path, path: str) -> Stored:
        """Copy a local file of any size, hashed on the way; not atomic."""
        with self._asked("write", path):
            with source.open("rb") as stream, self._sink(path) as sink:
                stored = _copy(stream, sink)
            self._settle(path)
            size = self.files.get_file_info(self._full(path)).size
        if size != stored.size:
            raise StorageError(
                f"{self._name(path)} must hold the {stored.size} bytes that were written, "
                f"got {size}."
            )
        return stored

    def download(self, path: str, target: Path) -> Stored | None:
        """Copy a file to a local one, hashed on the way; None where there is no such file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            return self._drain(path, sink)

    def measure(self, path: str) -> Stored | None:
        """Size and checksum of a file as it lies there; None where there is no such file."""
        return self._drain(path, None)

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        selector = arrow_fs.FileSelector(self._full(path), allow_not_found=True)
        with self._asked("list", path):
            return sorted(info.base_name for info in self.files.get_file_info(selector))

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing to delete is no error."""
        full = self._full(path)
        with self._asked("delete", path):
            try:
                if self.files.get_file_info(full).type == arrow_fs.FileType.Directory:
                    self.files.delete_dir(full)
                else:
                    self.files.delete_file(full)
            except OSError:
                # After a delete, pyarrow puts an object where the S3 folder was, and not every
                # server takes that: what counts is that the path is gone.
                if self.files.get_file_info(full).type != arrow_fs.FileType.NotFound:
                    raise

    def _drain(self, path: str, sink: BinaryIO | None) -> Stored | None:
        with self._asked("read", path):
            try:
                with self.files.open_input_stream(self._full(path)) as stream:
                    return _copy(stream, sink)
            except FileNotFoundError:
                return None

    def _sink(self, path: str) -> Any:
        full = self._full(path)
        try:
            return self.files.open_output_stream(full)
        except FileNotFoundError:  # never on an object store, which has no folders to make
            self.files.create_dir(str(PurePosixPath(full).parent), recursive=True)
            return self.files.open_output_stream(full)

    def _settle(self, path: str) -> None:
        """Bring a local file's bytes to the disk, so that no later commit outlives them."""
        if self.local is not None:
            with (self.local / path).open("rb") as stream:
                os.fsync(stream.fileno())

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if self.root else path

    def _name(self, path: str) -> str:
        return f"{self.uri.rstrip('/')}/{path}"

    @contextmanager
    def _asked(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"Could not {verb} {self._name(path)}: {_line(error)}.") from error


def _copy(stream: Any, sink: Any) -> Stored:
    size, digest = 0, hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink.write(chunk)
    return Stored(size, digest.hexdigest())


def _public(uri: str) -> str:
    """A URI without user, password and query, which may hold keys."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _with_single_puts(uri: str) -> str:
    """Ask pyarrow to write a small S3 object by one request, where it would take three."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or "allow_delayed_open=" in parts.query:
        return uri
    query = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=f"{query}allow_delayed_open=true"))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
