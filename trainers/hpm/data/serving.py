"""Whether a data set serves a stage: looked at before anything runs, and cheaply."""

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from hpm.data.errors import DataError, reading
from hpm.data.layout import (
    Annotated,
    Embedded,
    Folders,
    Maps,
    Tables,
    locate,
    no_labels,
    no_objects,
)
from hpm.data.maps import Classes, glance, open_maps, require_fit

__all__ = ["require_labels", "require_maps", "require_objects"]


def require_labels(name: str, roots: Mapping[str, Path]) -> None:
    """See that each image of a data set has a class.

    Raises:
        DataError: they have none.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded() | Folders():
                return
            case Tables() as tables:
                # pyarrow is needed by Parquet sets alone.
                from hpm.data.parquet import labels_digest

                labels_digest(tables)
            case Maps() | Annotated() as layout:
                raise DataError(no_labels(name, layout))
            case other:
                assert_never(other)


def require_maps(name: str, roots: Mapping[str, Path], said: Classes) -> None:
    """See that each pixel of a data set has a class, by a few annotations of each split.

    Raises:
        DataError: there are no annotations, or one of these is wrong.
    """
    with reading(roots.get(name, name)):
        if isinstance(locate(name, roots), Embedded):
            require_fit(said)
            return
    for split in ("train", "val"):
        glance(open_maps(name, split, roots, said))


def require_objects(name: str, roots: Mapping[str, Path]) -> None:
    """See that a data set says where objects are; its annotations are read when it is opened.

    Raises:
        DataError: it does not.
    """
    with reading(roots.get(name, name)):
        if not isinstance(locate(name, roots), Annotated | Embedded):
            raise DataError(no_objects(name, roots[name]))
