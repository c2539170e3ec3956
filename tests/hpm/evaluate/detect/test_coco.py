"""Data sets in COCO's layout: what is read, and what is refused."""

import gc
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as runs

from hpm.config import Data, Encoder
from hpm.data import annotations
from hpm.data.errors import DataError, UnreachableError
from hpm.data.fingerprint import fingerprint
from hpm.data.layout import Annotated, Folders, locate
from hpm.data.object_sources import open_objects
from hpm.data.objects import tight_boxes
from hpm.data.serving import require_objects
from hpm.data.source import open_source
from hpm.evaluate.config import Random
from hpm.trainer import TRAINER


@pytest.fixture
def root(write, tmp_path):
    return write(tmp_path / "set", train=4, val=2)


parse = annotations._parse


def opened(root):
    return open_objects("set", {"set": root})


def test_coco__is_found_with_and_without_the_year(root, write, tmp_path):
    layout = locate("set", {"set": root})
    assert isinstance(layout, Annotated)
    assert layout.val_file == root / "annotations" / "instances_val2017.json"
    plain = write(tmp_path / "plain", year="")
    assert isinstance(locate("plain", {"plain": plain}), Annotated)
    for file in (plain / "annotations").iterdir():
        file.unlink()
    assert isinstance(locate("plain", {"plain": plain}), Folders)


def test_coco__classes_are_numbered_by_their_ids(root):
    train, val = opened(root)
    assert train.classes == val.classes == ("red", "blue")
    assert (len(train), len(val)) == (4, 2)
    assert [train.objects(index).labels.tolist() for index in range(4)] == [[0], [1], [0], [1]]
    truth = val.truth()
    assert [category["id"] for category in truth.categories] == [3, 7]
    assert [annotation["category_id"] for annotation in truth.annotations] == [3, 7]


def test_coco__masks_lie_on_the_objects(root):
    train, _ = opened(root)
    for index in range(len(train)):
        (label,), (mask,) = train.objects(index)
        pixels = np.asarray(train.image(index))
        np.testing.assert_array_equal(mask, pixels[:, :, 2 * label] == 250)


def test_coco__polygons_and_runs_are_one_mask(root, edit):
    polygons = [opened(root)[0].objects(index).masks for index in range(4)]

    def as_runs(document):
        for number, annotation in enumerate(document["annotations"]):
            whole = runs.merge(runs.frPyObjects(annotation["segmentation"], 24, 32))
            if number % 2:
                counts = whole["counts"].decode()
            else:
                flat = runs.decode(whole).flatten(order="F")
                edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
                counts = np.diff([0, *edges, len(flat)]).tolist()
            annotation["segmentation"] = {"size": [24, 32], "counts": counts}

    edit(root, "train", as_runs)
    for index, expected in enumerate(polygons):
        np.testing.assert_array_equal(opened(root)[0].objects(index).masks, expected)


def test_coco__training_leaves_out_images_without_an_object(root, edit):
    def crowded(document):
        document["annotations"][1]["iscrowd"] = 1
        document["annotations"].pop(2)

    for split in ("train", "val"):
        edit(root, split, crowded if split == "train" else lambda d: d["annotations"].pop(0))
    train, val = opened(root)
    assert [label for i in range(len(train)) for label in train.objects(i).labels] == [0, 1]
    assert (len(val), len(val.truth().annotations)) == (2, 1)
    assert len(val.objects(0).labels) == 0


def test_coco__a_crowd_is_no_object_but_is_known(root, edit):
    def crowded(document):
        first = document["annotations"][0]
        document["annotations"].append({**first, "id": 999, "iscrowd": 1})

    edit(root, "val", crowded)
    _, val = opened(root)
    assert len(val.objects(0).labels) == 1
    assert [annotation["iscrowd"] for annotation in val.truth().annotations] == [0, 1, 0]


def test_coco__sources_can_be_pickled(root):
    train, _ = opened(root)
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again.objects(1).masks, train.objects(1).masks)


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco__wants_both_files(root, split):
    (root / "annotations" / f"instances_{split}2017.json").unlink()
    with pytest.raises(UnreachableError, match=f"instances_{split}2017.json is not there"):
        opened(root)


def test_coco__wants_every_image_that_is_named(root):
    (root / "train2017" / "0001.png").unlink()
    with pytest.raises(UnreachableError, match=r"instances_train2017.*train2017.*: 0001\.png"):
        opened(root)


def _annotation(**changes):
    return lambda document: document["annotations"][1].update(changes)


@pytest.mark.parametrize(
    ("how", "needed"),
    [
        (_annotation(bbox=[20, 2, 14, 5]), r"annotation 51 .* inside of 0001.png \(32 x 24\), got"),
        (_annotation(bbox=[-3, 2, 14, 5]), "left -3"),
        (_annotation(bbox=[3, 2, -1, 5]), "width -1"),
        (_annotation(category_id=4), "category_id 4; known: 3, 7"),
        (_annotation(image_id=4), "of an image of the file, got image_id 4"),
        (_annotation(segmentation=[]), "annotation 51 .* polygons of at least three points"),
        (_annotation(segmentation=[[1, 2, 3, 4]]), "at least three points"),
        (_annotation(segmentation=[[1, 2, 3, 4, 5, "6"]]), "at least three points"),
        (_annotation(segmentation={"size": [8, 8], "counts": [64]}), "runs of 0001.png"),
        (_annotation(segmentation={"size": [24, 32], "counts": ["768"]}), "runs of 0001.png"),
        (_annotation(segmentation={"size": [24, 32], "counts": [-1, 769]}), "runs of 0001.png"),
        (lambda d: d["annotations"][1].pop("bbox"), "annotation 51 must .* four numbers as bbox"),
        (_annotation(bbox=[3, 2, 5]), r"annotation 51 .* four numbers as bbox.*\[3, 2, 5\]"),
        (_annotation(bbox=["3", 2, 5, 5]), "annotation 51 .* four numbers as bbox"),
        (_annotation(id="51"), r"annotation 51 must have whole numbers .*got \{'id': '51'"),
        (_annotation(image_id="101"), "annotation 51 must have whole numbers as id, image_id"),
        (_annotation(area="large"), "annotation 51 .* a number as area if any, .*'large'"),
        (lambda d: d["annotations"].append("x"), "annotation None must have whole numbers"),
        (lambda d: d["images"][1].update(id=100), "each of its images .* more than once: 100"),
        (lambda d: d["images"][1].update(id="101"), "each of its images a whole .*: '101'"),
        (lambda d: d["images"][1].update(width="wide"), "missing or of another kind"),
        (lambda d: d["images"][1].update(id=1 << 70), "got image_id 101"),
        (lambda d: d["images"].append({**d["images"][0], "id": 1 << 70}), "of another kind: .*int"),
        (lambda d: d["images"].append({**d["images"][0], "id": 9, "width": "x"}), "another kind"),
        (lambda d: d["images"][1].update(file_name="a/1.png"), "lie in .* itself, got a/1.png"),
        (lambda d: d["categories"][1].update(id=7), "each of its categories .* more than once: 7"),
        (lambda d: d.pop("images"), "missing or of another kind: 'images'"),
        (lambda d: d["annotations"].clear(), "must have an annotation of an object"),
        (lambda d: [a.update(iscrowd=1) for a in d["annotations"]], "got crowds alone"),
        (lambda d: d["categories"][0].update(name="green"), "same categories.*'blue'.*'green'"),
    ],
)
def test_coco__says_what_an_annotation_must_be(root, edit, how, needed):
    edit(root, "val", how)
    for look in (opened, lambda root: require_objects("set", {"set": root})):
        with pytest.raises(DataError, match=needed) as caught:
            look(root)
        assert "instances_val2017.json" in str(caught.value)


def test_coco__boxes_may_be_rounded_out_of_an_image(root, edit):
    edit(root, "val", _annotation(bbox=[20, 2, 12.6, 5]))
    assert len(opened(root)[1]) == 2


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_coco__wants_a_json_object(root, content):
    (root / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(DataError, match=r"instances_val2017\.json must be"):
        opened(root)


def test_coco__wants_images_of_the_size_that_is_said(root):
    Image.new("RGB", (30, 24)).save(root / "val2017" / "0000.png")
    with pytest.raises(DataError, match=r"0000\.png must have the size .* 32 x 24, got 30 x 24"):
        opened(root)[1].image(0)


def test_coco__is_no_set_of_classified_images(root):
    with pytest.raises(DataError, match="images with objects, which serve detect"):
        open_source("set", "train", {"set": root})


def test_objects__are_not_in_image_folders(place):
    with pytest.raises(DataError, match="must say where objects are"):
        open_objects("colours", place.data)


def test_fingerprint__of_coco_is_of_its_content(root, edit, write, tmp_path):
    first = fingerprint("set", {"set": root})
    assert fingerprint("other", {"other": write(tmp_path / "copy", train=4, val=2)}) == first
    Image.new("RGB", (32, 24)).save(root / "val2017" / "0000.png")
    second = fingerprint("set", {"set": root})
    edit(root, "val", _annotation(area=1))
    assert len({first, second, fingerprint("set", {"set": root})}) == 3


def test_fingerprint__finds_what_is_wrong_before_anything_runs(root, edit):
    edit(root, "train", _annotation(category_id=4))
    with pytest.raises(DataError, match="known: 3, 7"):
        fingerprint("set", {"set": root})
    (root / "train2017" / "0000.png").write_bytes(b"")
    edit(root, "train", _annotation(category_id=3))
    with pytest.raises(DataError, match=r"1 unreadable: .*0000\.png"):
        fingerprint("set", {"set": root})


def test_fits__reads_annotation_files_before_anything_trains(root, edit, small):
    place = SimpleNamespace(data={"blocks": root}, threads=1, loaders=0, download=False)
    encoder = Encoder(patch_size=8, width=16, heads=2)
    parent = Random(data=Data(name="fashion-scenes", image_size=32), encoder=encoder)
    edit(root, "val", lambda d: d["categories"][0].update(name="green"))
    assert "must have the same categories" in TRAINER.fits(small, parent, place)
    edit(root, "val", lambda d: d["categories"][0].update(name="blue"))
    assert TRAINER.fits(small, parent, place) is None
    many = replace(small, optim=replace(small.optim, batch_size=6))
    assert "batch_size=6 for 4 images" in TRAINER.fits(many, parent, place)


def test_require_objects__reads_files_once_as_they_are(root, edit, monkeypatch):
    read = []
    monkeypatch.setattr(annotations, "_parse", lambda file: read.append(file.name) or parse(file))
    for _ in range(2):
        fingerprint("set", {"set": root})
        assert require_objects("set", {"set": root}) == 4
    both = ["instances_train2017.json", "instances_val2017.json"]
    assert read == both
    edit(root, "train", lambda d: d["annotations"].pop())
    assert require_objects("set", {"set": root}) == 3
    assert read == both * 2
    (root / "train2017" / "0001.png").unlink()
    with pytest.raises(UnreachableError, match=r"0001\.png"):
        require_objects("set", {"set": root})


def test_coco__is_read_with_cycles_looked_for_before_and_after(root):
    assert gc.isenabled()
    opened(root)
    assert gc.isenabled()
    gc.disable()
    try:
        opened(root)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("which", [0, 1])
def test_fashion_scenes__boxes_bound_the_garments_tightly(which):
    source = open_objects("fashion-scenes", {})[which]
    for index in range(0, len(source), 97):
        (label,), masks = source.objects(index)
        left, top, right, bottom = tight_boxes(masks)[0].astype(int)
        assert masks[0].sum() == masks[0, top:bottom, left:right].sum() > 0
        inner = masks[0, top:bottom, left:right]
        assert inner[0].any()
        assert inner[-1].any()
        assert inner[:, 0].any()
        assert inner[:, -1].any()
        assert 0 <= label < len(source.classes) == 10


def test_fashion_scenes__truth_is_of_every_garment():
    _, val = open_objects("fashion-scenes", {})
    truth = val.truth()
    assert len(truth.images) == len(truth.annotations) == len(val) == 2000
    for index in (0, 1999):
        (label,), (mask,) = val.objects(index)
        annotation = truth.annotations[index]
        assert annotation["category_id"] == label + 1
        np.testing.assert_array_equal(runs.decode(annotation["segmentation"]), mask)
