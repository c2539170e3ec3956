"""A folder on any storage that pyarrow.fs reaches; beside `address` the only one that knows it.

Object stores have no rename: a single PUT is what is atomic there. On a local disk a file appears
by renaming a finished one, and its bytes are on the disk before its name is.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from pyarrow import fs as arrow_fs

from ablation.address import folder_at, masked, public, reach
from ablation.patience import IMPATIENT, Patience

__all__ = ["LostStorageError", "Storage", "StorageError", "Stored", "stored_of"]

_CHUNK = 4 * 2**20  # bytes
_OTHER_BYTES = "it holds other bytes than were written"

_T = TypeVar("_T")


class StorageError(Exception):
    """The storage does not do or does not hold what it must; the text is for people."""


class LostStorageError(StorageError):
    """The storage was there, and has refused for as long as it is waited for."""


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
    refuses, a patient one LostStorageError.
    """

    files: Any
    root: str
    uri: str
    """How people call it; holds no password."""
    local: Path | None = None
    anchor: str = ""
    """A file that must be there: in place of a disk that is not mounted lies an empty folder."""
    patience: Patience = field(default=IMPATIENT, repr=False, compare=False)

    @classmethod
    def open(cls, uri: str | Path) -> "Storage":
        """The folder at a local path or at a URI such as `s3://bucket/folder`; touches nothing."""
        if isinstance(uri, Path) or "://" not in uri:
            return cls._at(Path(uri))
        try:
            files, root = reach(uri)
        except (OSError, ValueError) as error:
            reason = masked(_line(error), uri)
            raise StorageError(
                f"The storage must be a local folder or a URI that pyarrow can open, such as "
                f"s3://bucket/folder, got {public(uri)} ({reason}). Check the address, the "
                f"region and the credentials."
            ) from None  # the cause repeats the URI with its keys
        if isinstance(files, arrow_fs.LocalFileSystem):
            return cls._at(Path(root))
        return cls(files=files, root=root.rstrip("/"), uri=public(uri))

    @classmethod
    def _at(cls, folder: Path) -> "Storage":
        folder = folder_at(folder).absolute()
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
            raise type(error)(
                f"The storage must be a folder that can be written, got {self.uri}: {error} "
                f"Choose another folder or bucket, or get permission to write to this one."
            ) from error

    def patient(self, patience_s: float, say: Callable[[str], None]) -> "Storage":
        """The same folder; where it refuses, it is asked again for so many seconds.

        `say` is told of each wait's reason, and once more when the storage does its part again.
        """
        return replace(self, patience=Patience(patience_s, say))

    def within(self, path: str) -> "Storage":
        """A folder of this one."""
        local = None if self.local is None else self.local / path
        return replace(self, root=self._full(path), uri=self._name(path), local=local)

    def read(self, path: str) -> bytes | None:
        """The content of a small file, None where there is no such file."""

        def act() -> bytes | None:
            try:
                return self._content(path)
            except (FileNotFoundError, NotADirectoryError):
                self._require_anchor()
                return None

        return self._ask("read", path, act)

    def write(self, path: str, content: bytes, *, durable: bool = True) -> Stored:
        """Replace a small file by `content` at once: a reader sees the old file or the new one.

        What is not `durable` may be lost where the machine loses its power.
        """

        def act() -> Stored:
            at = path if self.local is None else f"{path}.{secrets.token_hex(4)}.tmp"
            with self._leaving_nothing(at, path):
                with self._sink(at) as stream:
                    stream.write(content)
                if at != path:
                    if durable:
                        self._settle(at)
                    self.files.move(self._full(at), self._full(path))
            if self._content(path) != content:
                raise OSError(_OTHER_BYTES)
            return stored_of(content)

        return self._ask("write", path, act)

    def upload(self, source: Path, path: str, *, check: bool = False) -> Stored:
        """Copy a local file of any size, hashed on the way; not atomic. A `check` reads it back."""

        def act() -> Stored:
            with source.open("rb") as stream, self._sink(path) as sink:
                stored = _copy(stream, sink)
            self._settle(path)
            size = self.files.get_file_info(self._full(path)).size
            if size != stored.size:
                raise OSError(f"it holds {size} bytes of the {stored.size} that were written")
            if check and self._drain(path, None) != stored:
                raise OSError(_OTHER_BYTES)
            return stored

        return self._ask("write", path, act)

    def download(self, path: str, target: Path) -> Stored | None:
        """Copy a file to a local one, hashed on the way; None where there is no such file."""
        target.parent.mkdir(parents=True, exist_ok=True)

        def act() -> Stored | None:
            with target.open("wb") as sink:
                return self._drain(path, sink)

        return self._ask("read", path, act)

    def measure(self, path: str) -> Stored | None:
        """Size and checksum of a file as it lies there; None where there is no such file."""
        return self._ask("read", path, lambda: self._drain(path, None))

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        selector = arrow_fs.FileSelector(self._full(path), allow_not_found=True)

        def act() -> list[str]:
            found = sorted(info.base_name for info in self.files.get_file_info(selector))
            if not found:
                self._require_anchor()
            return found

        return self._ask("list", path, act)

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing to delete is no error."""
        full = self._full(path)

        def act() -> None:
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
                self._require_anchor()

        self._ask("delete", path, act)

    def _require_anchor(self) -> None:
        """See that nothing is found, or a folder is to be made, not just because all is away."""
        full = self._full(self.anchor)
        if self.anchor and self.files.get_file_info(full).type == arrow_fs.FileType.NotFound:
            raise OSError(f"{self.anchor} must be there, and is not (is its disk mounted?)")

    def _content(self, path: str) -> bytes:
        with self._stream(path) as stream:
            content: bytes = stream.read()
        return content

    @contextmanager
    def _stream(self, path: str) -> Iterator[Any]:
        full = self._full(path)
        with self.files.open_input_stream(full) as stream:
            try:
                yield stream
            except OSError as error:
                # An object store may delete a file that is open.
                if self.files.get_file_info(full).type == arrow_fs.FileType.NotFound:
                    raise FileNotFoundError(full) from error
                raise

    def _drain(self, path: str, sink: BinaryIO | None) -> Stored | None:
        try:
            with self._stream(path) as stream:
                return _copy(stream, sink)
        except FileNotFoundError:
            self._require_anchor()
            return None

    def _sink(self, path: str) -> Any:
        full = self._full(path)
        try:
            return self.files.open_output_stream(full)
        except FileNotFoundError:  # never on an object store, which has no folders to make
            self._require_anchor()
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
    def _leaving_nothing(self, at: str, path: str) -> Iterator[None]:
        """Where a write by way of the file `at` fails, that file goes: a full disk has no room."""
        try:
            yield
        except BaseException:
            if at != path:
                with suppress(OSError):
                    self.files.delete_file(self._full(at))
            raise

    def _ask(self, verb: str, path: str, act: Callable[[], _T]) -> _T:
        waits = self.patience.waits()
        while True:
            try:
                done = act()
            except (OSError, UnicodeDecodeError) as error:  # the latter of a listing's names
                refusal = f"Could not {verb} {self._name(path)}: {_line(error)}."
                if not waits.wait(refusal):
                    lost = self.patience != IMPATIENT
                    raise (LostStorageError if lost else StorageError)(refusal) from error
            else:
                waits.over()
                return done


def _copy(stream: Any, sink: Any) -> Stored:
    size, digest = 0, hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink.write(chunk)
    return Stored(size, digest.hexdigest())


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
