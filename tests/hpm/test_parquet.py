import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpm.data import fingerprint as fingerprinting
from hpm.data import parquet
from hpm.data.errors import DataError, UnreachableError
from hpm.data.fingerprint import fingerprint
from hpm.data.layout import Tables, locate
from hpm.data.source import open_source

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


def _encoded(value):
    pixels = np.random.default_rng(value).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _table(values, labels, names=("cat", "dog")):
    images = [{"bytes": _encoded(value), "path": f"{value}.png"} for value in values]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": about} if names else None)


@pytest.fixture
def tables(tmp_path):
    root = tmp_path / "tables"
    (root / "data").mkdir(parents=True)
    pq.write_table(
        _table(range(5), [0, 1, 0, 1, 1]), root / "data" / "train-0.parquet", row_group_size=2
    )
    pq.write_table(_table(range(5, 8), [1, 0, 0]), root / "data" / "train-1.parquet")
    pq.write_table(_table([8, 9], [0, 1]), root / "data" / "validation-0.parquet")
    pq.write_table(_table([10], [-1]), root / "data" / "test-0.parquet")
    return root


def test_locate__prefers_validation_files_to_test_files(tables):
    found = locate("pets", {"pets": tables})
    assert isinstance(found, Tables)
    assert [path.name for path in found.train] == ["train-0.parquet", "train-1.parquet"]
    assert [path.name for path in found.val] == ["validation-0.parquet"]
    found.val[0].unlink()
    again = locate("pets", {"pets": tables})
    assert isinstance(again, Tables)
    assert [path.name for path in again.val] == ["test-0.parquet"]


@pytest.mark.parametrize("held_bytes", [parquet.HELD_BYTES, 0])
def test_parquet__reads_rows_over_files_and_row_groups(tables, monkeypatch, held_bytes):
    monkeypatch.setattr(parquet, "HELD_BYTES", held_bytes)
    source = open_source("pets", "train", {"pets": tables})
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(len(source))] == [0, 1, 0, 1, 1, 1, 0, 0]
    for index in (7, 0, 3, 4, 5):
        expected = Image.open(io.BytesIO(_encoded(index)))
        assert source.image(index).tobytes() == expected.tobytes()
    packed = pickle.dumps(source)
    assert pickle.loads(packed).image(6).tobytes() == source.image(6).tobytes()


def test_parquet__without_names_numbers_the_classes(tmp_path):
    pq.write_table(_table([0, 1, 2], [0, 3, 1], names=()), tmp_path / "train.parquet")
    pq.write_table(_table([0], [2], names=()), tmp_path / "test.parquet")
    assert open_source("pets", "val", {"pets": tmp_path}).classes == ("0", "1", "2", "3")


def test_parquet__refuses_labels_that_are_no_class(tables):
    (tables / "data" / "validation-0.parquet").unlink()
    with pytest.raises(DataError, match=r"Labels must be in 0\.\.1 .* got -1\.\.-1"):
        open_source("pets", "val", {"pets": tables})


@pytest.mark.parametrize(
    "columns",
    [
        {"img": [{"bytes": b""}], "label": [0]},
        {"image": [b""], "label": [0]},
        {"image": [{"path": ""}], "label": [0]},
        {"image": [{"bytes": "text"}], "label": [0]},
        {"image": [{"bytes": b""}], "label": ["cat"]},
    ],
)
def test_parquet__says_which_columns_it_needs(tables, columns):
    pq.write_table(pa.table(columns), tables / "data" / "train-1.parquet")
    with pytest.raises(DataError, match=r"train-1\.parquet must have the columns image .* got i"):
        open_source("pets", "train", {"pets": tables})


def test_parquet__refuses_an_empty_split(tables):
    pq.write_table(_table([], []), tables / "data" / "validation-0.parquet")
    with pytest.raises(DataError, match="must have at least one image"):
        open_source("pets", "val", {"pets": tables})


def test_parquet__names_the_row_of_an_image_that_cannot_be_read(tables):
    table = pa.table({"image": [{"bytes": b"x"}, {"bytes": None}], "label": [0, 1]})
    pq.write_table(table, tables / "data" / "validation-0.parquet")
    source = open_source("pets", "val", {"pets": tables})
    for index in (0, 1):
        with pytest.raises(
            DataError, match=rf"Row {index} of row group 0 in .*validation-0\.parquet"
        ):
            source.image(index)


MALFORMED = {
    "": r"` .*must be JSON \(Expecting value: line 1",
    "{": "` .*must be JSON",
    "\xff": "` .*must be JSON",
    "[]": r"` .*must be an object, got \[\]",
    '{"info": null}': r"\.info` .*must be an object, got None",
    '{"info": {"features": ["label"]}}': r"\.features` .*must be an object, got \['label'\]",
    '{"info": {"features": {"label": "cat"}}}': r"\.label` .*must be an object, got 'cat'",
    '{"info": {"features": {"label": {"names": 5}}}}': r"\.names` .*must be a list, got 5",
}


@pytest.mark.parametrize("about", MALFORMED)
def test_parquet__names_a_file_whose_metadata_are_malformed(tables, about):
    table = _table([8], [0]).replace_schema_metadata({"huggingface": about.encode("latin-1")})
    pq.write_table(table, tables / "data" / "validation-0.parquet")
    words = rf"validation-0\.parquet is malformed: `huggingface.*{MALFORMED[about]}.* Write it anew"
    for read in (partial(open_source, "pets", "val"), partial(fingerprint, "pets")):
        with pytest.raises(DataError, match=words) as caught:
            read({"pets": tables})
        assert not caught.value.retry


LISTS = '{"info": {"features": {"boxes": [{}], "label": {"names": null}}}}'


@pytest.mark.parametrize("about", [None, "{}", '{"info": {}}', LISTS])
def test_parquet__may_say_nothing_of_its_labels(tables, about):
    """Of other columns anything may be said: lists are described by lists."""
    table = _table([8], [0]).replace_schema_metadata(about and {"huggingface": about})
    pq.write_table(table, tables / "data" / "validation-0.parquet")
    assert open_source("pets", "val", {"pets": tables}).classes == ("cat", "dog")


def _damage(path, column):
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)


@pytest.mark.parametrize("column", [0, 2])
def test_parquet__names_a_file_with_a_damaged_page(tables, column):
    _damage(tables / "data" / "validation-0.parquet", column)
    said = pytest.raises(DataError, match=r"validation-0\.parquet must be a readable Parquet file")
    with said as caught:
        open_source("pets", "val", {"pets": tables})
    assert not caught.value.retry


def test_parquet__that_is_away_may_come_back(tables, monkeypatch):
    monkeypatch.setattr(parquet, "HELD_BYTES", 0)
    source = open_source("pets", "val", {"pets": tables})
    (tables / "data" / "validation-0.parquet").rename(tables / "away")
    with pytest.raises(UnreachableError, match=r"validation-0\.parquet must be .*No such"):
        source.image(0)
    (tables / "away").rename(tables / "data" / "validation-0.parquet")
    assert source.image(0).mode == "RGB"


@pytest.mark.parametrize("content", [b"nothing of the kind", b""])
def test_parquet__names_a_file_of_another_kind(tables, content):
    (tables / "data" / "validation-0.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"validation-0\.parquet must be a readable Parquet file"):
        open_source("pets", "val", {"pets": tables})


def test_parquet__holds_the_two_splits_of_one_data_set_and_no_more(tables, tmp_path):
    places = {"pets": tables, "more": shutil.copytree(tables, tmp_path / "more")}
    parquet._hold_images.cache_clear()
    for name in places:
        sources = [open_source(name, split, places) for split in ("train", "val")]
        assert [source.image(1).size for source in sources] == [(8, 6)] * 2
        assert parquet._hold_images.cache_info().currsize == 2
    assert parquet._hold_images.cache_info().misses == 4


@pytest.mark.parametrize("held_bytes", [parquet.HELD_BYTES, 0])
def test_parquet__reads_a_file_anew_that_was_replaced(tables, monkeypatch, held_bytes):
    monkeypatch.setattr(parquet, "HELD_BYTES", held_bytes)
    path = tables / "data" / "validation-0.parquet"
    before = open_source("pets", "val", {"pets": tables}).image(0).tobytes()
    modified_ns = path.stat().st_mtime_ns
    pq.write_table(_table([20, 9], [0, 1]), path)
    os.utime(path, ns=(modified_ns, modified_ns + 1))
    after = open_source("pets", "val", {"pets": tables}).image(0).tobytes()
    assert after == Image.open(io.BytesIO(_encoded(20))).tobytes() != before


def _unfit():
    kind = pa.struct({"bytes": pa.binary()})
    image = pa.array([{"bytes": b""}] * 3, kind)
    return {
        "have a label in every row, got 2 without": {"image": image, "label": [0, None, None]},
        "have the columns image": {"image": image, "labels": [0, 1, 0]},
        "have at least one image": {"image": image[:0], "label": pa.array([], pa.int64())},
        r"be in 0\.\.1 .* got 0\.\.5": {"image": image, "label": [0, 1, 5]},
    }


@pytest.mark.parametrize("problem", _unfit())
def test_fingerprint__finds_tables_that_no_cell_could_use(tables, problem):
    pq.write_table(pa.table(_unfit()[problem]), tables / "data" / "validation-0.parquet")
    with pytest.raises(DataError, match=f"must {problem}"):
        fingerprint("pets", {"pets": tables})


def test_fingerprint__finds_files_that_name_other_classes(tables):
    pq.write_table(_table([8], [0], ("dog", "cat")), tables / "data" / "validation-0.parquet")
    with pytest.raises(DataError, match=r"the same classes .*train-0.* and .*validation-0"):
        fingerprint("pets", {"pets": tables})


def test_fingerprint__finds_a_training_set_without_rows_or_names(tables):
    (tables / "data" / "train-1.parquet").unlink()
    pq.write_table(_table([], [], ()), tables / "data" / "train-0.parquet")
    pq.write_table(_table([8], [0], ()), tables / "data" / "validation-0.parquet")
    with pytest.raises(DataError, match="must have at least one image"):
        fingerprint("pets", {"pets": tables})


# Labels lie in the middle, where only a reading of all of the file, or of its labels, finds them.
@pytest.mark.parametrize("most", [fingerprinting._HASHED_BYTES, 0])
def test_fingerprint__sees_two_labels_exchanged(tables, most, monkeypatch):
    monkeypatch.setattr(fingerprinting, "_HASHED_BYTES", most)
    path = tables / "data" / "train-0.parquet"
    kind = pa.struct({"bytes": pa.binary()})
    noise = np.random.default_rng(0)
    image = pa.array([{"bytes": noise.bytes(3 << 20)} for _ in range(4)], kind)
    found, ends = set(), set()
    for labels in ([0, 1, 0, 1], [1, 0, 0, 1]):
        table = pa.table({"image": image, "label": labels})
        pq.write_table(table, path, row_group_size=2, compression="NONE", write_statistics=False)
        content = path.read_bytes()
        ends.add((content[: 1 << 20], content[-1 << 20 :]))
        found.add(fingerprint("pets", {"pets": tables}))
    assert len(ends) == 1
    assert len(found) == 2


def test_fingerprint__of_tables_loads_neither_pandas_nor_torch(tables):
    program = (
        "import sys; from pathlib import Path; from hpm.data.fingerprint import fingerprint; "
        f"fingerprint('pets', {{'pets': Path({str(tables)!r})}}); "
        "assert not {'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="shared/data/cifar10 is not beside the repository")
def test_parquet__reads_cifar10():
    sizes = {"train": 50_000, "val": 10_000}
    for split, size in sizes.items():
        source = open_source("cifar10", split, {"cifar10": CIFAR10})
        assert len(source) == size
        assert source.classes[0] == "airplane"
        assert source.image(size - 1).size == (32, 32)
        assert np.bincount([source.label(i) for i in range(size)]).tolist() == [size // 10] * 10
    assert len(fingerprint("cifar10", {"cifar10": CIFAR10})) == 64


@pytest.mark.parametrize("part", [slice(0, 40), slice(0, -1), slice(4, None), slice(0, 0)])
def test_fingerprint__refuses_a_part_of_a_parquet_file(tables, part):
    path = tables / "data" / "train-1.parquet"
    path.write_bytes(path.read_bytes()[part])
    with pytest.raises(DataError, match=r"train-1\.parquet must be a whole Parquet file"):
        fingerprint("pets", {"pets": tables})


def test_fingerprint__of_parquet_is_of_the_content_and_not_of_the_place(tables, tmp_path):
    before = fingerprint("a", {"a": tables})
    copy = shutil.copytree(tables, tmp_path / "elsewhere")
    assert fingerprint("b", {"b": copy}) == before
    for name in ("train-0", "train-1", "validation-0"):
        path = copy / "data" / f"{name}.parquet"
        content = path.read_bytes()
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        assert fingerprint("b", {"b": copy}) != before
        path.write_bytes(content)
    assert fingerprint("b", {"b": copy}) == before
