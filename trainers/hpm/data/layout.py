"""Where a data set lies and how it is laid out there, found from names and folders alone."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, assert_never

from hpm.data.errors import DataError, UnreachableError

__all__ = [
    "EMBEDDED",
    "Annotated",
    "Embedded",
    "Folders",
    "ImageFile",
    "Layout",
    "MapFile",
    "Maps",
    "Tables",
    "image_files",
    "locate",
    "map_files",
    "no_labels",
    "no_objects",
]

EMBEDDED = "fashion-scenes"
"""The data set that comes with the package."""

_VALIDATION = ("val", "valid", "validation", "test")
_MAPPED = {"train": "training", "val": "validation"}
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Embedded:
    """FashionScenes: no files to look for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """ImageNet's layout: a folder a split, in it a folder a class."""

    train: Path
    val: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Parquet files of each split, in the order of their names."""

    train: tuple[Path, ...]
    val: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Maps:
    """ADE20K's layout: `images` and `annotations`, in each the folders of `_MAPPED`."""

    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """COCO's layout: a folder of images for each split, and a file that says what is in them."""

    train: Path
    val: Path
    train_file: Path
    val_file: Path


Layout: TypeAlias = Annotated | Embedded | Folders | Maps | Tables


class ImageFile(NamedTuple):
    """One image of a split: its class, its path below the split's folder, its size in bytes."""

    class_name: str
    path: str
    num_bytes: int


class MapFile(NamedTuple):
    """An image and its map of classes: paths below the data set's folder, sizes in bytes."""

    image: str
    annotation: str
    image_bytes: int
    annotation_bytes: int


def locate(name: str, roots: Mapping[str, Path]) -> Layout:
    """What `name` stands for; `roots` gives a folder for every data set that is not built in.

    A folder holds either `train/` and `val/` (or `valid/`, `validation/`, `test/`: the first that
    exists), or `train*.parquet` and `val*.parquet` (or `test*.parquet`), these also in `data/`, or
    `images/training/` and `images/validation/` (ADE20K), or
    COCO's `train2017/` and `val2017/` with `annotations/instances_train2017.json` and
    `instances_val2017.json` (all of them also without the year).

    Raises:
        DataError: the name is unknown.
        UnreachableError: its folder is absent, or no split is in it.
        OSError: a folder cannot be looked into.
    """
    if name == EMBEDDED:
        if name in roots:
            raise DataError(
                f"Data set {EMBEDDED!r} is built in and lies in no folder, got {roots[name]}; "
                "give the data set in that folder another name."
            )
        return Embedded()
    if name not in roots:
        raise DataError(_unknown(name, roots))
    root = roots[name]
    if not root.is_dir():
        raise UnreachableError(f"Data set {name!r} must lie in an existing folder, got {root}.")
    kinds = (_annotated, _folders, _maps, _tables, lambda at: _tables(at / "data"))
    layout = next((found for kind in kinds if (found := kind(root))), None)
    if layout is None:
        # It may be there at another time: what a disk is mounted on is an empty folder without it.
        raise UnreachableError(
            f"Data set {name!r} must have a training and a validation split in {root}: the folders "
            "train and val with a folder for each class, or the files train*.parquet and "
            "val*.parquet (validation*, test*), or the folders images/training and "
            "images/validation, or COCO's train2017 and val2017 with annotations; they are not "
            "there."
        )
    return layout


def no_labels(name: str, layout: Maps | Annotated) -> str:
    """What to say where images need labels and have maps of classes, or objects."""
    match layout:
        case Maps(root):
            held, serve = f"{root} holds images with maps of classes", "segment"
        case Annotated(train=train):
            held, serve = f"{train} holds images with objects", "detect"
        case other:
            assert_never(other)
    return (
        f"Data set {name!r} must have a class for each image, but {held}, which serve {serve} "
        "alone. Name another data set in data.name."
    )


def no_objects(name: str, root: Path) -> str:
    """What to say where objects are needed and nothing says where they are."""
    return (
        f"Data set {name!r} must say where objects are, but {root} has no "
        "annotations/instances_*.json. Name a set in COCO's layout under detect's data.name, or "
        "fashion-scenes."
    )


def _unknown(name: str, roots: Mapping[str, Path]) -> str:
    known = sorted({EMBEDDED, *roots})
    close = get_close_matches(name, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"Data set {name!r} is unknown; known: {', '.join(known)}.{guess} "
        f"Say where it lies: --data {name}=FOLDER, or under data: in a profile."
    )


def _annotated(root: Path) -> Annotated | None:
    for year in ("2017", ""):
        train, val = root / f"train{year}", root / f"val{year}"
        files = [root / "annotations" / f"instances_{split.name}.json" for split in (train, val)]
        absent = [str(file) for file in files if not file.is_file()]
        # Without the year the folders may be ImageNet's; one of the files shows that they are not.
        if not (train.is_dir() and val.is_dir()) or (len(absent) == 2 and not year):
            continue
        if absent:
            raise UnreachableError(
                f"{train} and {val} must have COCO's annotations, but "
                f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not there."
            )
        return Annotated(train=train, val=val, train_file=files[0], val_file=files[1])
    return None


def _folders(root: Path) -> Folders | None:
    validation = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    if validation is None or not (root / "train").is_dir():
        return None
    return Folders(train=root / "train", val=validation)


def _maps(root: Path) -> Maps | None:
    there = all((root / "images" / folder).is_dir() for folder in _MAPPED.values())
    return Maps(root) if there else None


def _tables(root: Path) -> Tables | None:
    train, val, test = (tuple(sorted(root.glob(f"{s}*.parquet"))) for s in ("train", "val", "test"))
    if not train or not (val or test):
        return None
    return Tables(train=train, val=val or test)


def map_files(root: Path, split: Literal["train", "val"]) -> tuple[MapFile, ...]:
    """The images of one split with their maps, sorted by name; other files are left aside.

    Raises:
        DataError: there is no image, or one has no map of its name, as PNG.
        OSError: a folder cannot be looked into.
    """
    folders = [f"{kind}/{_MAPPED[split]}" for kind in ("images", "annotations")]
    if not (root / folders[1]).is_dir():
        raise DataError(
            f"{root} must have the folder {folders[1]} with a map of classes (PNG) for each image "
            f"of {folders[0]}; it is not there."
        )
    images, maps = (_sizes(root / folder) for folder in folders)
    if not images:
        raise DataError(f"{root / folders[0]} must hold images ({', '.join(_SUFFIXES)}), got none.")
    wanted = {name: f"{Path(name).stem}.png" for name in sorted(images)}
    if missing := [name for name in wanted.values() if name not in maps]:
        raise DataError(
            f"Each image in {root / folders[0]} must have a map of its name in "
            f"{root / folders[1]}, but {len(missing)} are not there: {', '.join(missing[:10])}."
        )
    return tuple(
        MapFile(f"{folders[0]}/{image}", f"{folders[1]}/{map_}", images[image], maps[map_])
        for image, map_ in wanted.items()
    )


def _sizes(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {
            entry.name: entry.stat().st_size if entry.is_file() else 0
            for entry in entries
            if entry.name.lower().endswith(_SUFFIXES)
        }


def image_files(split: Path) -> tuple[ImageFile, ...]:
    """The images of one split, sorted by class and path; other files are left aside.

    Raises:
        DataError: there is no class, or a class has no image.
        OSError: a folder or link cannot be followed.
    """
    with os.scandir(split) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise DataError(f"{split} must hold a folder for each class, got none.")
    by_class = {name: sorted(_walk(split, name)) for name in classes}
    if empty := [name for name, files in by_class.items() if not files]:
        raise DataError(
            f"Each class in {split} must have an image ({', '.join(_SUFFIXES)}), got none for "
            f"{', '.join(empty[:10])}{f' and {len(empty) - 10} more' if len(empty) > 10 else ''}."
        )
    return tuple(file for files in by_class.values() for file in files)


def _walk(split: Path, class_name: str) -> Iterator[ImageFile]:
    folders = [class_name]
    while folders:
        folder = folders.pop()
        with os.scandir(split / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if entry.is_dir():
                    folders.append(path)
                elif entry.name.lower().endswith(_SUFFIXES):
                    # A link that leads nowhere is listed, so that it is found unreadable.
                    num_bytes = entry.stat().st_size if entry.is_file() else 0
                    yield ImageFile(class_name, path, num_bytes)
