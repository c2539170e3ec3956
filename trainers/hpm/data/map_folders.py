"""Images with maps of classes in ADE20K's layout: a file for each, in folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hpm.data.decoding import Header, decode, read_header
from hpm.data.errors import DataError, UnreachableError, reading
from hpm.data.layout import MapFile

__all__ = ["ADE20K_CLASSES", "MapFolders", "class_names"]

ADE20K_CLASSES = 150


@dataclass(frozen=True, slots=True)
class MapFolders:
    """One split."""

    root: Path
    files: tuple[MapFile, ...]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming the file, where it cannot be read."""
        encoded, named = self._read(self.files[index].image)
        return decode(encoded, named=named)

    def annotation(self, index: int) -> tuple[bytes, str]:
        """The encoded annotation, and what it is called in a sentence."""
        return self._read(self.files[index].annotation)

    def headers(self, index: int) -> tuple[Header, Header]:
        """Those of the image and of its annotation. Raises DataError where either is no image."""
        image, annotation, *_ = self.files[index]
        return self._header(image), self._header(annotation)

    def reach(self) -> Sequence[int]:
        """All: each lies in files of its own."""
        return range(len(self))

    def _header(self, path: str) -> Header:
        at = self.root / path
        with reading(at), at.open("rb") as file:
            return read_header(file, named=str(at))

    def _read(self, path: str) -> tuple[bytes, str]:
        try:
            return (self.root / path).read_bytes(), str(self.root / path)
        except OSError as error:
            raise UnreachableError(
                f"{self.root / path} cannot be read: {error.strerror}."
            ) from error


def class_names(root: Path) -> tuple[str, ...]:
    """Those of ADE20K's own list, objectInfo150.txt, where it lies beside the images; else none.

    Raises:
        DataError: it is no text in UTF-8.
    """
    table = root / "objectInfo150.txt"
    if not table.is_file():
        return ()
    try:
        text = table.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table} must be a text in UTF-8; save it as one, or remove it ({error})."
        ) from error
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    names = tuple(row[-1].split(",")[0].strip() for row in rows)
    return names if len(names) == ADE20K_CLASSES else ()
