"""COCO's files of annotations: read, checked, and kept in arrays that are cheap to copy.

Letters: N images, A annotations, in the order of their images.
"""

import gc
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpm.data.errors import DataError, UnreachableError
from hpm.data.layout import Annotated

__all__ = ["Annotations", "count_trained", "read_annotations", "read_both"]

_SLACK = 1.0
"""Pixels that a box may stick out of its image: COCO's own boxes are rounded."""

_NUMBERS: Final = frozenset({int, float})

_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "segmentation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """What is in the images of one split; classes are numbered from 0, by their ids."""

    file: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """As in the file, for each class."""
    paths: NDArray[np.str_]
    """[N], names in the split's folder."""
    image_ids: NDArray[np.int64]
    """[N], ascending."""
    sizes: NDArray[np.int64]
    """[N, 2], width and height."""
    starts: NDArray[np.int64]
    """[N + 1], each image's first annotation, and A."""
    labels: NDArray[np.int64]
    """[A]."""
    boxes: NDArray[np.float64]
    """[A, 4]: left, top, width, height, in pixels."""
    areas: NDArray[np.float64]
    """[A], in pixels."""
    crowd: NDArray[np.bool_]
    """[A], True where one annotation stands for many objects."""
    outlines: bytes
    """The `segmentation` of all annotations, each as JSON; one object, so that loader processes
    need not copy a million."""
    ends: NDArray[np.int64]
    """[A + 1], where each begins in `outlines`, and its length."""

    def outline(self, number: int) -> Any:
        """The `segmentation` of one annotation: polygons, or runs."""
        return json.loads(self.outlines[self.ends[number] : self.ends[number + 1]])

    def with_object(self) -> NDArray[np.int64]:
        """Positions of the images that have an object; crowds are none."""
        singles = np.concatenate([[0], np.cumsum(~self.crowd)])
        return np.flatnonzero(singles[self.starts[1:]] > singles[self.starts[:-1]])


def count_trained(layout: Annotated) -> int:
    """See that both files are right; how many training images have an object.

    Once in a process for files and folders as they are, since COCO's take tens of seconds.

    Raises:
        DataError: as `read_both`.
        OSError: a file or folder cannot be looked at.
    """
    paths = (layout.train, layout.val, layout.train_file, layout.val_file)
    found = [path.stat() for path in paths]
    return _count(layout, tuple((status.st_size, status.st_mtime_ns) for status in found))


@cache
def _count(layout: Annotated, versions: tuple[tuple[int, int], ...]) -> int:
    return len(read_both(layout, outlines=False)[0].with_object())


def read_both(layout: Annotated, *, outlines: bool = True) -> tuple[Annotations, Annotations]:
    """What is said of the images of both splits, training first; `outlines` as below.

    Raises:
        DataError: a file is not as `read_annotations` wants it, or they have other categories.
    """
    train = read_annotations(layout.train_file, layout.train, outlines=outlines)
    val = read_annotations(layout.val_file, layout.val, outlines=outlines)
    trained, validated = (
        set(zip(held.category_ids, held.classes, strict=True)) for held in (train, val)
    )
    if trained != validated:
        raise DataError(
            f"{train.file} and {val.file} must have the same categories, got {len(trained)} and "
            f"{len(validated)}; only one of them has {sorted(trained ^ validated)[:10]}."
        )
    return train, val


def read_annotations(file: Path, images: Path, *, outlines: bool = True) -> Annotations:
    """What `file` says of the images in the folder `images`.

    Without `outlines` these are looked at but not kept, which takes a third of the time less.

    Raises:
        DataError: it is no file of COCO's instances, or two of its images or categories have one
            id, an image lies in a folder further down, an annotation is of an image or a category
            that it does not describe, has a box outside of its image, or no mask; or none is of an
            object.
        UnreachableError: the file, or an image that it names, is absent.
    """
    try:
        with _without_cycles():
            document = _parse(file)
            pictures, categories = (
                _entries(file, document, kind) for kind in ("images", "categories")
            )
            _require_images(file, images, [picture["file_name"] for picture in pictures])
            given = list(document["annotations"])
            return _collect(file, pictures, categories, given, outlines=outlines)
    except DataError:
        raise
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} must be a file of COCO's instances, with `images`, `categories` and "
            f"`annotations` and their fields, but one is missing or of another kind: {error}."
        ) from error


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Python does not look for cycles: among millions of lists that takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise UnreachableError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} must be JSON; replace it ({error}).") from error
    if not isinstance(document, dict):
        raise DataError(f"{file} must be a JSON object, got {type(document).__name__}.")
    return document


def _entries(file: Path, document: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """The file's images or categories, in the order of their ids."""
    counts = Counter(entry["id"] for entry in document[kind])
    wrong = [held for held, count in counts.items() if count > 1 or not isinstance(held, int)]
    if wrong:
        raise DataError(
            f"{file} must give each of its {kind} a whole number of its own as id, got otherwise "
            f"or more than once: {', '.join(map(repr, wrong[:10]))}."
        )
    return sorted(document[kind], key=lambda entry: entry["id"])


def _require_images(file: Path, folder: Path, names: Sequence[str]) -> None:
    if below := [name for name in names if Path(name).name != name]:
        raise DataError(
            f"{file} must name images that lie in {folder} itself, got {', '.join(below[:10])}. "
            "Move them there, and name them without a folder."
        )
    there = {path.name for path in folder.iterdir()}
    if absent := [name for name in names if name not in there]:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise UnreachableError(
            f"{file} names images that must be in {folder}, but these are not: "
            f"{', '.join(absent[:10])}{more}. Add them, or take them out of the file."
        )


def _collect(
    file: Path,
    pictures: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    given: Sequence[Mapping[str, Any]],
    *,
    outlines: bool,
) -> Annotations:
    classes = {category["id"]: number for number, category in enumerate(categories)}
    known = {picture["id"]: picture for picture in pictures}
    if problems := [p for a in given if (p := _problem(a, classes=classes, pictures=known))]:
        more = f" And {len(problems) - 5} more like it." if len(problems) > 5 else ""
        raise DataError(f"{file}: {' '.join(problems[:5])}{more}")
    if all(annotation.get("iscrowd", 0) for annotation in given):
        raise DataError(f"{file} must have an annotation of an object, got crowds alone or none.")
    given = sorted(given, key=lambda annotation: (annotation["image_id"], annotation["id"]))
    counts = Counter(annotation["image_id"] for annotation in given)
    kept = [json.dumps(a["segmentation"]).encode() if outlines else b"" for a in given]
    boxes = np.array([a["bbox"] for a in given], dtype=np.float64).reshape(-1, 4)
    return Annotations(
        file=file,
        classes=tuple(str(category["name"]) for category in categories),
        category_ids=tuple(classes),
        paths=np.array([picture["file_name"] for picture in pictures], dtype=np.str_),
        image_ids=np.array(list(known), dtype=np.int64),
        sizes=np.array([(p["width"], p["height"]) for p in pictures], np.int64).reshape(-1, 2),
        starts=_starts([counts[image] for image in known]),
        labels=np.array([classes[a["category_id"]] for a in given], dtype=np.int64),
        boxes=boxes,
        areas=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in given], np.float64),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in given], dtype=np.bool_),
        outlines=b"".join(kept),
        ends=_starts([len(outline) for outline in kept]),
    )


def _malformed(annotation: Any) -> str | None:
    match annotation:
        case {
            "id": int(),
            "image_id": int(),
            "category_id": int(),
            "bbox": [int() | float(), int() | float(), int() | float(), int() | float()],
            "segmentation": _,
        } if isinstance(annotation.get("area", 0), int | float):
            return None
    held = annotation if isinstance(annotation, dict) else {}
    got = {field: held[field] for field in _FIELDS if field in held}
    return (
        f"annotation {held.get('id')} must have whole numbers as id, image_id and category_id, "
        f"four numbers as bbox, a segmentation, and a number as area if any, got {got!r:.200}."
    )


def _problem(
    annotation: Mapping[str, Any],
    *,
    classes: Mapping[int, int],
    pictures: Mapping[int, Mapping[str, Any]],
) -> str | None:
    if malformed := _malformed(annotation):
        return malformed
    name = f"annotation {annotation['id']}"
    picture = pictures.get(annotation["image_id"])
    if picture is None:
        return f"{name} must be of an image of the file, got image_id {annotation['image_id']}."
    if annotation["category_id"] not in classes:
        return (
            f"{name} must be of a category of the file, got category_id "
            f"{annotation['category_id']}; known: {', '.join(map(str, classes))}."
        )
    left, top, width, height = annotation["bbox"]
    across, down = picture["width"], picture["height"]
    inside = min(left, top) >= -_SLACK and min(width, height) >= 0
    if not (inside and left + width <= across + _SLACK and top + height <= down + _SLACK):
        return (
            f"{name} must have its box inside of {picture['file_name']} ({across} x {down}), "
            f"got left {left:g}, top {top:g}, width {width:g}, height {height:g}."
        )
    if not _is_outline(annotation["segmentation"], across, down):
        return (
            f"{name} must have as its segmentation polygons of at least three points, or runs "
            f"of {picture['file_name']} ({across} x {down})."
        )
    return None


def _is_outline(outline: object, width: int, height: int) -> bool:
    match outline:
        case {"size": [int(h), int(w)], "counts": list(lengths)}:
            whole = all(isinstance(length, int) and length >= 0 for length in lengths)
            return whole and (h, w) == (height, width) and sum(lengths) == width * height
        case {"size": [int(h), int(w)], "counts": str()}:
            return (h, w) == (height, width)
        case [_, *_]:
            return all(
                isinstance(part, list)
                and len(part) >= 6
                and len(part) % 2 == 0
                and set(map(type, part)) <= _NUMBERS
                for part in outline
            )
    return False


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
