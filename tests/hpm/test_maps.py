import io
import json
import pickle
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpm.config import Data, Encoder
from hpm.data import fingerprint as fingerprinting
from hpm.data import glancing, parquet, serving
from hpm.data.errors import DataError, UnreachableError
from hpm.data.fingerprint import fingerprint
from hpm.data.maps import VOID, Classes, open_maps
from hpm.data.serving import require_labels, require_maps
from hpm.data.source import open_source
from hpm.evaluate.config import EvalData, Knn, Pixels, Random
from hpm.evaluate.segment.config import MapData, Segment, UperNetRecipe
from hpm.trainer import TRAINER

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
THREE = Classes(void=0, classes=3)
SIZES = {"training": [(8, 6), (5, 9), (7, 7)], "validation": [(6, 8), (4, 4)]}


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _encoded(split, number):
    """An image and a map of values 0..3, each as PNG."""
    width, height = SIZES[split][number]
    rng = np.random.default_rng([len(split), number])
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    values = rng.integers(0, 4, (height, width), dtype=np.uint8)
    values.flat[:4] = range(4)
    return _png(image), _png(values)


@pytest.fixture
def ade(tmp_path):
    """The folder of a data set in ADE20K's layout."""
    root = tmp_path / "ade"
    for split, sizes in SIZES.items():
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in range(len(sizes)):
            image, values = _encoded(split, number)
            (root / "images" / split / f"{number}.png").write_bytes(image)
            (root / "annotations" / split / f"{number}.png").write_bytes(values)
    return root


def _table(split, said=None):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pairs = [_encoded(split, number) for number in range(len(SIZES[split]))]
    columns = {
        name: pa.array([{"bytes": pair[place], "path": ""} for pair in pairs], kind)
        for place, name in enumerate(("image", "annotation"))
    }
    about = json.dumps({"info": {"features": {"annotation": said}}}) if said else None
    return pa.table(columns).replace_schema_metadata({"huggingface": about} if about else None)


def _write_tables(root, said=None):
    root.mkdir(exist_ok=True)
    pq.write_table(_table("training", said), root / "train.parquet", row_group_size=2)
    pq.write_table(_table("validation", said), root / "val.parquet")
    return root


@pytest.fixture
def tables(tmp_path):
    """The same images and maps in Parquet files, whose schema says nothing."""
    return _write_tables(tmp_path / "tables")


def test_maps__of_folders_and_of_tables_read_alike(ade, tables):
    for split, count in (("train", 3), ("val", 2)):
        first, second = (open_maps("x", split, {"x": root}, THREE) for root in (ade, tables))
        assert len(first) == len(second) == count
        assert first.names == second.names == ("0", "1", "2")
        for index in range(count):
            (image, map_), (other, same) = first.pair(index), second.pair(index)
            assert image.tobytes() == other.tobytes()
            assert map_.dtype == np.uint8
            assert map_.tolist() == same.tolist()


def test_maps__void_is_apart_and_classes_count_from_0(ade):
    _, map_ = open_maps("x", "train", {"x": ade}, THREE).pair(0)
    values = np.asarray(Image.open(io.BytesIO(_encoded("training", 0)[1])))
    assert np.array_equal(map_ == VOID, values == 0)
    assert np.array_equal(map_[values > 0], values[values > 0] - 1)
    _, map_ = open_maps("x", "train", {"x": ade}, Classes(void=3, classes=3)).pair(0)
    assert np.array_equal(map_ == VOID, values == 3)
    assert np.array_equal(map_[values < 3], values[values < 3])


def test_maps__of_folders_are_ade20ks_unless_the_study_says_otherwise(ade):
    source = open_maps("x", "train", {"x": ade}, Classes())
    assert (len(source.names), source.void) == (150, 0)
    rows = [f"{n}\t0.1\t1\t1\t0\tthing{n}, object" for n in range(150)]
    (ade / "objectInfo150.txt").write_text(
        "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows])
    )
    assert open_maps("x", "train", {"x": ade}, Classes()).names[149] == "thing149"


def test_maps__of_tables_are_what_the_schema_says_unless_the_study_does(tmp_path):
    said = {"_type": "Image", "names": ["road", "sky", "tree"], "void": 3}
    root = _write_tables(tmp_path / "named", said)
    source = open_maps("x", "val", {"x": root}, Classes())
    assert (source.names, source.void) == (("road", "sky", "tree"), 3)
    assert open_maps("x", "val", {"x": root}, Classes(void=0)).void == 0


def test_maps__of_tables_without_a_word_have_a_void_of_255(tables):
    assert open_maps("x", "val", {"x": tables}, Classes(classes=4)).void == 255


def test_maps__of_scenes_have_a_background_and_garments():
    source = open_maps("fashion-scenes", "val", {}, Classes())
    assert (len(source), len(source.names), source.names[0]) == (2000, 11, "background")
    scenes = open_source("fashion-scenes", "val", {})
    for index in (0, 1999):
        _, map_ = source.pair(index)
        assert np.unique(map_).tolist() == [0, 1 + scenes.label(index)]
    garments = open_maps("fashion-scenes", "val", {}, Classes(void=0))
    assert len(garments.names) == 10
    assert np.unique(garments.pair(0)[1]).tolist() == [scenes.label(0), VOID]


def test_maps__can_be_sent_to_a_loader_process(ade, tables):
    for root in (ade, tables):
        source = open_maps("x", "train", {"x": root}, THREE)
        sent = pickle.loads(pickle.dumps(source))
        assert sent.pair(2)[1].tolist() == source.pair(2)[1].tolist()


@pytest.mark.skipif(not CAMVID.is_dir(), reason="shared/data/camvid is not beside the repository")
def test_maps__reads_camvid():
    said = Classes(void=11, classes=11)
    for split, size in (("train", 367), ("val", 101)):
        source = open_maps("camvid", split, {"camvid": CAMVID}, said)
        assert len(source) == size
        image, map_ = source.pair(size - 1)
        assert image.size == (240, 180)
        assert map_.shape == (180, 240)
        assert set(np.unique(map_)) <= {*range(11), VOID}
    require_maps("camvid", {"camvid": CAMVID}, said)
    assert len(fingerprint("camvid", {"camvid": CAMVID})) == 64


def _early(root, said=THREE):
    """What a study is told when it is planned."""
    fingerprint("x", {"x": root})
    require_maps("x", {"x": root}, said)


def _scenes(said):
    return open_maps("fashion-scenes", "val", {}, said)


def _first(root, said=THREE):
    """What a run is told when it reads all of the training split."""
    source = open_maps("x", "train", {"x": root}, said)
    return [source.pair(index) for index in range(len(source))]


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__names_the_folder_that_is_absent(ade, look):
    shutil.rmtree(ade / "annotations" / "training")
    with pytest.raises(DataError, match="must have the folder annotations/training with a map of"):
        look(ade)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__names_images_without_a_map(ade, look):
    (ade / "annotations" / "training" / "1.png").unlink()
    with pytest.raises(DataError, match=r"a map of its name in .*but 1 are not there: 1\.png"):
        look(ade)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__wants_images(ade, look):
    shutil.rmtree(ade / "images" / "training")
    (ade / "images" / "training").mkdir()
    with pytest.raises(DataError, match=r"images/training must hold images .* got none"):
        look(ade)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__names_a_map_of_another_size(ade, look):
    path = ade / "annotations" / "training" / "1.png"
    path.write_bytes(_encoded("training", 0)[1])
    with pytest.raises(DataError, match=r"training/1\.png must have .* 5 x 9, got 8 x 6"):
        look(ade)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__names_a_value_that_is_no_class(ade, tables, look):
    few = Classes(void=0, classes=2)
    with pytest.raises(DataError, match=r"0\.png must hold values in 1\.\.2 and 0 \(void\), got 3"):
        look(ade, few)
    with pytest.raises(DataError, match=r"annotation of row 0 of row group 0 in .*train\.parquet"):
        look(tables, few)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__says_that_a_map_has_one_channel(ade, look):
    path = ade / "annotations" / "training" / "2.png"
    path.write_bytes(_encoded("training", 2)[0])
    with pytest.raises(DataError, match=r"2\.png must be a map of classes, .* got mode RGB"):
        look(ade)


@pytest.mark.parametrize("look", [_early, _first])
@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_maps__names_a_file_that_is_no_image(ade, look, kind):
    (ade / kind / "training" / "1.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=rf"{kind}/training/1\.png"):
        look(ade)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__names_a_list_of_classes_that_is_no_text(ade, look):
    (ade / "objectInfo150.txt").write_bytes("Idx\tName\n1\tcafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"objectInfo150\.txt must be a text in UTF-8; save it"):
        look(ade)


def test_maps__that_are_away_may_come_back(ade):
    source = open_maps("x", "train", {"x": ade}, THREE)
    path = ade / "annotations" / "training" / "1.png"
    path.rename(ade / "away")
    with pytest.raises(UnreachableError, match=r"training/1\.png cannot be read: No such file"):
        source.pair(1)
    (ade / "away").rename(path)
    assert source.pair(1)[1].shape == (9, 5)


def _many(root, split, count, wrong):
    """So many images in a split, all alike; the map of the `wrong` one has a value beyond 3."""
    image, values = _encoded("training", 0)
    for number in range(count):
        map_ = _png(np.full((6, 8), 9, np.uint8)) if number == wrong else values
        (root / "images" / split / f"{number}.png").write_bytes(image)
        (root / "annotations" / split / f"{number}.png").write_bytes(map_)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_require_maps__looks_at_every_pair_of_a_small_split(ade, split):
    _many(ade, split, 30, wrong=20)
    with pytest.raises(DataError, match=rf"{split}/20\.png must hold values in 1\.\.3 .* got 9"):
        require_maps("x", {"x": ade}, THREE)


@pytest.mark.parametrize("wrong", range(10))
def test_require_maps__looks_at_an_even_sample_of_a_large_split(ade, monkeypatch, wrong):
    monkeypatch.setattr(glancing, "_WHOLE", 9)
    monkeypatch.setattr(glancing, "_PAIRS", 4)
    _many(ade, "validation", 10, wrong=wrong)
    if wrong not in (0, 3, 6, 9):
        assert require_maps("x", {"x": ade}, THREE) == 3
        return
    with pytest.raises(DataError, match=rf"validation/{wrong}\.png must hold values"):
        require_maps("x", {"x": ade}, THREE)


@pytest.mark.parametrize("wrong", [2, 5, 7])
@pytest.mark.parametrize(
    ("map_", "said"),
    [
        (_png(np.ones((8, 6), np.uint8)), r"must have the size of its image, 8 x 6, got 6 x 8"),
        (_png(np.ones((6, 8, 3), np.uint8)), "must be a map of classes, .* got mode RGB"),
        (b"\x89PNG\r\n\x1a\n, and no more", "must be a readable image"),
    ],
)
def test_require_maps__looks_at_every_header_of_a_large_split(ade, monkeypatch, wrong, map_, said):
    monkeypatch.setattr(glancing, "_WHOLE", 9)
    monkeypatch.setattr(glancing, "_PAIRS", 2)
    _many(ade, "training", 10, wrong=None)
    path = ade / "annotations" / "training" / f"{wrong}.png"
    path.write_bytes(map_)
    with pytest.raises(DataError, match=rf"training/{wrong}\.png {said}"):
        require_maps("x", {"x": ade}, THREE)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnreachableError, match=rf"training/{wrong}\.png cannot be read"):
        require_maps("x", {"x": ade}, THREE)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("wrong", range(10))
def test_require_maps__looks_at_a_few_row_groups_of_a_large_file(tables, monkeypatch, held, wrong):
    monkeypatch.setattr(glancing, "_WHOLE", 9)
    monkeypatch.setattr(glancing, "_PAIRS", 2)
    monkeypatch.setattr(parquet, "HELD_BYTES", 1 << 30 if held else 0)
    rows = _table("training").to_pylist()[:1] * 20
    other = {"bytes": _encoded("training", 1)[1], "path": ""}
    rows[2 * wrong + 1] = {**rows[0], "annotation": other}
    table = pa.Table.from_pylist(rows, schema=_table("training").schema)
    pq.write_table(table, tables / "train.parquet", row_group_size=2)
    if not held and wrong not in (0, 3, 6, 9):
        assert require_maps("x", {"x": tables}, THREE) == 20
        return
    with pytest.raises(DataError, match=rf"row 1 of row group {wrong} in .* got 5 x 9"):
        require_maps("x", {"x": tables}, THREE)


def test_require_maps__of_scenes_finds_nothing_wrong():
    glancing.glance(open_maps("fashion-scenes", "val", {}, Classes()), "val")


@pytest.mark.parametrize(("split", "kind"), [("train", "training"), ("val", "validation")])
def test_require_maps__wants_a_pixel_of_a_small_split_that_is_not_void(ade, split, kind):
    for number, size in enumerate(SIZES[kind]):
        path = ade / "annotations" / kind / f"{number}.png"
        path.write_bytes(_png(np.zeros(size[::-1], np.uint8)))
    with pytest.raises(DataError, match=f"The {kind} split must have pixels that are not void"):
        require_maps("x", {"x": ade}, THREE)
    assert require_maps("x", {"x": ade}, Classes(void=3, classes=3)) == 3
    one = np.zeros(size[::-1], np.uint8)
    one[-1, -1] = 2
    path.write_bytes(_png(one))
    assert require_maps("x", {"x": ade}, THREE) == 3


def test_require_maps__looks_once_in_a_process(ade, monkeypatch):
    looks = []
    monkeypatch.setattr(serving, "glance", lambda source, split: looks.append(split))
    for said in (THREE, THREE, Classes(void=3, classes=3)):
        assert require_maps("x", {"x": ade}, said) == 3
    assert looks == ["train", "val"] * 2


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__wants_classes_where_the_files_name_none(tables, look):
    with pytest.raises(DataError, match=r"data\.classes .* must say how many classes there are"):
        look(tables, Classes())


def test_maps__refuses_numbers_that_the_names_belie(tmp_path):
    for look in (lambda said: require_maps("fashion-scenes", {}, said), _scenes):
        with pytest.raises(DataError, match=r"must be 11, the number of .* got 10"):
            look(Classes(classes=10))
    root = _write_tables(tmp_path / "named", {"names": ["a", "b", "c"]})
    with pytest.raises(
        DataError, match=r"data\.void .* at least the number of classes \(3\), got 1"
    ):
        open_maps("x", "val", {"x": root}, Classes(void=1))


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__wants_a_class_for_each_pixel(tmp_path, look):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "a.png").write_bytes(_encoded("training", 0)[0])
    with pytest.raises(DataError, match=r"must have a class for each pixel, but .*name another"):
        look(tmp_path)


def test_maps__says_which_columns_it_needs(tables):
    table = pq.read_table(tables / "train.parquet")
    pq.write_table(table.rename_columns(["image", "mask"]), tables / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet must have the columns image and annot"):
        _first(tables)
    with pytest.raises(DataError, match=r"train\.parquet must have the columns image .*got image"):
        _early(tables)


@pytest.mark.parametrize("look", [_early, _first])
def test_maps__files_must_agree(tables, look):
    pq.write_table(_table("validation", {"void": 7}), tables / "val.parquet")
    with pytest.raises(DataError, match=r"same classes and void .*train\.parquet and .*val\.parq"):
        look(tables)


@pytest.mark.parametrize("void", ["11", 256, -1])
def test_maps__void_of_a_schema_is_a_value(tmp_path, void):
    root = _write_tables(tmp_path / "named", {"names": ["a", "b", "c"], "void": void})
    with pytest.raises(DataError, match=r"train\.parquet must say void as a number in 0\.\.255"):
        _early(root)


def test_maps__refuses_a_split_without_rows(tables):
    pq.write_table(_table("validation")[:0], tables / "val.parquet")
    with pytest.raises(DataError, match="must have at least one image"):
        _early(tables)


@pytest.mark.parametrize(
    "read", [require_labels, lambda name, roots: open_source(name, "val", roots)]
)
def test_maps__are_no_labels(ade, read):
    with pytest.raises(
        DataError, match=r"must have a class for each image, but .*ade holds images"
    ):
        read("x", {"x": ade})


def test_fingerprint__of_maps_is_of_the_content_and_not_of_the_place(ade, tables, tmp_path):
    for root, path in ((ade, "annotations/validation/1.png"), (tables, "val.parquet")):
        before = fingerprint("x", {"x": root})
        copy = shutil.copytree(root, tmp_path / f"copy-{root.name}")
        assert fingerprint("y", {"y": copy}) == before
        if root is ade:
            (copy / path).write_bytes(_png(np.zeros((4, 4), np.uint8)))
        else:
            pq.write_table(_table("validation")[:1], copy / path)
        assert fingerprint("y", {"y": copy}) != before


def test_fits__looks_at_maps_and_labels_before_a_run(ade):
    place = SimpleNamespace(data={"x": ade}, threads=1, loaders=0, download=False)
    settings, parent = (
        Segment(
            crop=32,
            stride=32,
            data=MapData(name="x", void=0, classes=3),
            optim=UperNetRecipe(batch_size=3),
        ),
        Random(),
    )
    assert TRAINER.fits(settings, parent, place) is None
    many = replace(settings, optim=UperNetRecipe(batch_size=4))
    assert "batch_size=4 for 3 images" in TRAINER.fits(many, parent, place)
    assert "must have a class for each image" in TRAINER.fits(
        Knn(data=EvalData(name="x")), parent, place
    )
    assert TRAINER.fits(Knn(), Random(data=Data(name="fashion-scenes")), place) is None
    few = Segment(crop=32, stride=32, data=MapData(name="x", void=0, classes=2))
    assert "must hold values in 1..2 and 0 (void), got 3" in TRAINER.fits(few, parent, place)


@pytest.mark.parametrize(
    ("limit", "most", "seen"),
    [
        ("_HASHED_BYTES", 1 << 20, True),
        ("_HASHED_BYTES", 1, False),
        ("_HASHED_FILES", 10, True),
        ("_HASHED_FILES", 9, False),
    ],
)
def test_fingerprint__sees_maps_exchanged_in_small_sets(ade, monkeypatch, limit, most, seen):
    monkeypatch.setattr(fingerprinting, limit, most)
    path = ade / "annotations" / "training" / "0.png"
    content = path.read_bytes()
    found = set()
    for text in (b"one", b"two"):
        path.write_bytes(_with_text(content, text))
        found.add(fingerprint("x", {"x": ade}))
    assert (len(found) == 2) == seen


def _with_text(png, text):
    """The same picture of equal size, with three other bytes."""
    chunk = b"tEXt" + b"k\0" + text
    crc = zlib.crc32(chunk).to_bytes(4, "big")
    return png[:33] + (5).to_bytes(4, "big") + chunk + crc + png[33:]


def test_fits__says_what_an_encoder_lacks():
    place = SimpleNamespace(data={}, threads=1, loaders=0, download=False)
    scenes = Data(name="fashion-scenes", image_size=32)
    shallow = Random(data=scenes, encoder=Encoder(patch_size=4, depth=3))
    found = TRAINER.fits(Segment(crop=30, stride=30, layers=(1, 2, 3, 4)), shallow, place)
    assert "crop must be divisible by the encoder's patch_size=4, got 30" in found
    assert "layers must be blocks of the encoder, which has 3" in found
    for segment in (Segment(), Segment(frozen=True, drop_path=0.0)):
        said = TRAINER.fits(segment, Pixels(data=scenes), place)
        assert "need an encoder, but the pixels reference has none" in said
