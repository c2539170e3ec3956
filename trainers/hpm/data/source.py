"""A data set as the loaders see it: labelled RGB images of one split, reached by index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, assert_never

from PIL import Image

from hpm.data.errors import DataError, reading
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.data.folder import open_folder
from hpm.data.layout import Annotated, Embedded, Folders, Maps, Tables, locate, no_labels

__all__ = ["Source", "Split", "open_source"]

Split: TypeAlias = Literal["train", "val"]


class Source(Protocol):
    """One split. Indices run from 0 to len - 1; an object of this kind can be pickled."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position here."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The image, mode RGB. Raises DataError, naming the image, where it cannot be read."""
        ...

    def label(self, index: int) -> int:
        """The image's class."""
        ...


def open_source(name: str, split: Split, roots: Mapping[str, Path]) -> Source:
    """One split of the data set `name`: built in, or in the folder that `roots` gives for it.

    Raises:
        DataError: the data set is unknown, absent, unreadable, or not laid out as it should be.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded():
                return FashionScenes.open(split)
            case Folders() as folders:
                return open_folder(folders, split)
            case Tables() as tables:
                # pyarrow is needed by Parquet sets alone; without it every other set still works.
                from hpm.data.parquet import open_parquet

                return open_parquet(tables, split)
            case Maps() | Annotated() as layout:
                raise DataError(no_labels(name, layout))
            case other:
                assert_never(other)
