import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpm.data import parquet
from hpm.data.errors import DataError
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


def test_parquet__names_a_file_or_row_group_that_cannot_be_read(tables):
    path = tables / "data" / "validation-0.parquet"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:4] + bytes(200) + content[204:])
    with pytest.raises(DataError, match=r"Row group 0 of .*validation-0\.parquet cannot be read"):
        parquet._read_images(str(path), 0)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"validation-0\.parquet must be a readable Parquet file"):
        open_source("pets", "val", {"pets": tables})


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
