"""Images with a class for each pixel, reached by index.

They come as ADE20K's folders, as Parquet files, or as the embedded FashionScenes. Which values of
an annotation are classes, and which one is void, the study may say; else the layout does. Letters:
H, W height and width of an annotation.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpm.data.decoding import DAMAGES, Header
from hpm.data.errors import DataError, reading
from hpm.data.fashion_scenes.render import SIDE
from hpm.data.fashion_scenes.scenes import CLASSES, FashionScenes
from hpm.data.layout import Annotated, Embedded, Folders, Maps, Tables, locate, map_files
from hpm.data.map_folders import ADE20K_CLASSES, MapFolders, class_names

__all__ = [
    "VOID",
    "ClassMap",
    "Classes",
    "MapSource",
    "MapSplit",
    "open_maps",
    "require_fit",
    "require_known",
]

MapSplit: TypeAlias = Literal["train", "val"]

ClassMap: TypeAlias = NDArray[np.uint8]
"""[H, W], a class or VOID in each pixel."""

VOID = 255
"""What stands for void in a `ClassMap`, whatever stands for it in the files."""


class Classes(NamedTuple):
    """What a study says of the values of annotations; null leaves it to the data set."""

    void: int | None = None
    classes: int | None = None


class _Raw(Protocol):
    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...

    def annotation(self, index: int) -> tuple[bytes, str] | ClassMap: ...

    def headers(self, index: int) -> tuple[Header, Header]:
        """Those of the image and of its annotation."""
        ...

    def reach(self) -> Sequence[int]:
        """Indices, in ascending order, of what can be looked at without much reading."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSource:
    """One split. Indices run from 0 to len - 1; an object of this kind can be pickled.

    Values below or beside void are classes from 0 on; where void is 0, value 1 is class 0.
    """

    raw: _Raw
    names: tuple[str, ...]
    """Of the classes; their numbers where no names are known."""
    void: int | None

    def __len__(self) -> int:
        return len(self.raw)

    def pair(self, index: int) -> tuple[Image.Image, ClassMap]:
        """The image and its classes.

        Raises:
            DataError: either cannot be read, their sizes differ, or a value is no class.
        """
        image, found = self.raw.image(index), self.raw.annotation(index)
        values, named = (found, f"Map {index}") if isinstance(found, np.ndarray) else _values(found)
        _require_size((values.shape[1], values.shape[0]), image.size, named)
        return image, self._classes(values, named)

    def compare(self, index: int) -> None:
        """See that an image and its map have one size, and the map one channel, by their headers.

        Raises:
            DataError: they do not, or either is no image.
        """
        image, map_ = self.raw.headers(index)
        _require_mode(map_.mode, map_.named)
        _require_size(map_.size, image.size, map_.named)

    def _classes(self, values: ClassMap, named: str) -> ClassMap:
        first = int(self.void == 0)
        last = first + len(self.names) - 1
        void = np.zeros_like(values, dtype=bool) if self.void is None else values == self.void
        strange = np.unique(values[~void & ((values < first) | (values > last))])
        if len(strange):
            raise DataError(
                f"{named} must hold values in {first}..{last}"
                f"{'' if self.void is None else f' and {self.void} (void)'}, "
                f"got {', '.join(map(str, strange[:10]))} too; "
                "set data.classes and data.void of this evaluation."
            )
        return np.where(void, np.uint8(VOID), values - np.uint8(first))


def open_maps(
    name: str,
    split: MapSplit,
    roots: Mapping[str, Path],
    said: Classes,
) -> MapSource:
    """One split of the data set `name`: built in, or in the folder that `roots` gives for it.

    Without a word of the study, void is 0 in ADE20K's layout (and the classes are 150), 255 in
    Parquet files (whose schema names the classes), and nothing in FashionScenes, where 0 is the
    background and 1 to 10 are garments.

    Raises:
        DataError: the data set is unknown, absent, unreadable, or has no annotations; or what is
            said of void and classes does not fit it.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded():
                return _source(_Scenes(FashionScenes.open(split)), _Scenes.NAMES, None, said)
            case Maps(root):
                folders = MapFolders(root, map_files(root, split))
                return _source(folders, class_names(root) or ADE20K_CLASSES, 0, said)
            case Tables() as tables:
                # pyarrow is needed by Parquet sets alone; without it every other set still works.
                from hpm.data.map_tables import open_map_tables

                rows = open_map_tables(tables, split)
                return _source(
                    rows, rows.names or None, 255 if rows.void is None else rows.void, said
                )
            case Folders(train=train) | Annotated(train=train):
                raise DataError(
                    f"Data set {name!r} must have a class for each pixel, but {train} holds "
                    "none. Segmentation needs images/training, images/validation, "
                    "annotations/training and annotations/validation, or Parquet files with the "
                    "columns image and annotation; name another data set in data.name of this "
                    "evaluation."
                )
            case other:
                assert_never(other)


def require_fit(said: Classes) -> None:
    """See whether what is said fits FashionScenes, without rendering them. Raises DataError."""
    _source(_Scenes(FashionScenes("val")), _Scenes.NAMES, None, said)


def require_known(pixels: int, split: MapSplit) -> None:
    """See that so many pixels of a split that are not void are some. Raises DataError."""
    if pixels == 0:
        kind = "training" if split == "train" else "validation"
        raise DataError(
            f"The {kind} split must have pixels that are not void, got none; set data.void of "
            "this evaluation."
        )


def _source(
    raw: _Raw, known: tuple[str, ...] | int | None, void: int | None, said: Classes
) -> MapSource:
    """`known` are the names of the classes, or how many there are, as far as the data set says."""
    # A background that is void is no class.
    if isinstance(known, tuple) and isinstance(raw, _Scenes) and said.void == 0:
        known = known[1:]
    names = known if isinstance(known, tuple) else ()
    count = said.classes or (len(names) if names else known)
    void = void if said.void is None else said.void
    if not isinstance(count, int):
        raise DataError(
            "data.classes of this evaluation must say how many classes there are, for the files "
            "do not, got null."
        )
    if names and count != len(names):
        raise DataError(
            f"data.classes of this evaluation must be {len(names)}, the number of the data set's "
            f"classes, or null, got {count}."
        )
    if void is not None and 0 < void < count:
        raise DataError(
            f"data.void of this evaluation must be 0 or at least the number of classes ({count}), "
            f"got {void}."
        )
    return MapSource(raw=raw, names=names or tuple(map(str, range(count))), void=void)


def _values(found: tuple[bytes, str]) -> tuple[ClassMap, str]:
    encoded, named = found
    try:
        map_ = Image.open(io.BytesIO(encoded))
        mode, values = map_.mode, np.asarray(map_)
    except DAMAGES as error:
        raise DataError(f"{named} must be a readable image: {error}.") from error
    _require_mode(mode, named)
    return values, named


def _require_mode(mode: str, named: str) -> None:
    if mode not in ("L", "P"):
        raise DataError(
            f"{named} must be a map of classes, with one channel of 8 bits (mode L or P), "
            f"got mode {mode}."
        )


def _require_size(size: tuple[int, int], wanted: tuple[int, int], named: str) -> None:
    if size != wanted:
        raise DataError(
            f"{named} must have the size of its image, {wanted[0]} x {wanted[1]}, "
            f"got {size[0]} x {size[1]}."
        )


@dataclass(frozen=True, slots=True)
class _Scenes:
    scenes: FashionScenes

    NAMES = ("background", *CLASSES)

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> Image.Image:
        return self.scenes.image(index)

    def annotation(self, index: int) -> ClassMap:
        return self.scenes.mask(index) * np.uint8(1 + self.scenes.label(index))

    def headers(self, index: int) -> tuple[Header, Header]:
        size = (SIDE, SIDE)
        return Header(size, "RGB", f"Image {index}"), Header(size, "L", f"Map {index}")

    def reach(self) -> Sequence[int]:
        return range(len(self))
