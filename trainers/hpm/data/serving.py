"""Whether a data set serves a stage: looked at before anything runs, and cheaply."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, assert_never

from hpm.data.annotations import count_trained
from hpm.data.errors import DataError, reading
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.data.folder import open_folder
from hpm.data.glancing import glance
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
from hpm.data.maps import Classes, MapSplit, open_maps, require_fit

__all__ = ["Counts", "require_labels", "require_maps", "require_objects", "steps_per_epoch"]


class Counts(NamedTuple):
    """Images of each split."""

    train: int
    val: int


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; what is left over waits for another epoch's order.

    Raises:
        DataError: there are fewer images than one batch takes.
    """
    if num_images < batch_size:
        raise DataError(
            f"A batch must fit into the training set, got batch_size={batch_size} for "
            f"{num_images} images; make the batch smaller."
        )
    return num_images // batch_size


def require_labels(name: str, roots: Mapping[str, Path]) -> Counts:
    """See that each image of a data set has a class; how many images there are.

    Raises:
        DataError: they have none, or the splits have different ones.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded():
                return Counts(len(FashionScenes("train")), len(FashionScenes("val")))
            case Folders() | Tables() as layout:
                return _num_labelled(layout)
            case Maps() | Annotated() as layout:
                raise DataError(no_labels(name, layout))
            case other:
                assert_never(other)


def require_maps(name: str, roots: Mapping[str, Path], said: Classes) -> int:
    """See that each pixel of a data set has a class, as far as `glance` looks.

    It returns how many images train.

    Raises:
        DataError: there are no annotations, or one of these is wrong.
    """
    with reading(roots.get(name, name)):
        if isinstance(locate(name, roots), Embedded):
            require_fit(said)
            return len(FashionScenes("train"))
    return _num_mapped(name, roots[name], said)


def require_objects(name: str, roots: Mapping[str, Path]) -> int:
    """See that a data set says where objects are; how many images train.

    Raises:
        DataError: it does not, an annotation is wrong, or its splits have different categories.
    """
    with reading(roots.get(name, name)):
        match locate(name, roots):
            case Embedded():
                return len(FashionScenes("train"))
            case Annotated() as layout:
                return count_trained(layout)
            case _:
                raise DataError(no_objects(name, roots[name]))


@cache
def _num_labelled(layout: Folders | Tables) -> Counts:
    """Images of each split; once in a process, for each stage of a study asks."""
    if isinstance(layout, Folders):
        return Counts(len(open_folder(layout, "train")), len(open_folder(layout, "val")))
    # pyarrow is needed by Parquet sets alone.
    from hpm.data.parquet import read_labels

    labels = read_labels(layout)
    return Counts(len(labels["train"]), len(labels["val"]))


@cache
def _num_mapped(name: str, root: Path, said: Classes) -> int:
    """Training images; once in a process, for each head and evaluation of a study asks."""
    splits: tuple[MapSplit, MapSplit] = ("train", "val")
    sources = [open_maps(name, split, {name: root}, said) for split in splits]
    for source, split in zip(sources, splits, strict=True):
        glance(source, split)
    return len(sources[0])
