import errno
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpm.data import decoding, errors, layout
from hpm.data import fingerprint as fingerprinting
from hpm.data.errors import DataError, UnreachableError
from hpm.data.fingerprint import fingerprint
from hpm.data.layout import Embedded, Folders, locate
from hpm.data.source import open_source


def _encoded(value, kind="PNG", size=(8, 6), mode="RGB"):
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "pets"
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            _write(root / split / name / "b.png", _encoded(number))
            _write(root / split / name / "a.JPEG", _encoded(number + 10, "JPEG"))
    _write(root / "train" / "dog" / "more" / "c.jpg", _encoded(5, "JPEG", mode="L"))
    _write(root / "train" / "dog" / "notes.txt", b"no image")
    return root


def test_locate__knows_the_embedded_set_without_a_folder():
    assert locate("fashion-scenes", {}) == Embedded()


def test_locate__does_not_ignore_a_folder_for_the_embedded_set(tmp_path):
    with pytest.raises(DataError, match="is built in and lies in no folder"):
        locate("fashion-scenes", {"fashion-scenes": tmp_path})


def test_locate__names_what_is_known_and_the_nearest():
    with pytest.raises(
        DataError, match=r"known: fashion-scenes, imagenet\. Did you mean 'imagenet'"
    ) as caught:
        locate("imagnet", {"imagenet": Path("/nowhere")})
    assert "--data imagnet=FOLDER" in str(caught.value)
    assert "data: in a profile" in str(caught.value)
    with pytest.raises(DataError) as caught:
        locate("qqq", {})
    assert "Did you mean" not in str(caught.value)


def test_locate__says_that_a_folder_is_absent_or_laid_out_otherwise(tmp_path):
    with pytest.raises(UnreachableError, match="must lie in an existing folder, got"):
        locate("pets", {"pets": tmp_path / "absent"})
    (tmp_path / "train").mkdir()
    with pytest.raises(UnreachableError, match="must have a training and a validation split"):
        locate("pets", {"pets": tmp_path})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    with pytest.raises(UnreachableError, match="must have a training and a validation split"):
        locate("pets", {"pets": tmp_path})


def test_locate__takes_the_first_validation_folder(tmp_path):
    for name in ("train", "test", "validation"):
        (tmp_path / name).mkdir()
    found = locate("pets", {"pets": tmp_path})
    assert found == Folders(train=tmp_path / "train", val=tmp_path / "validation")


def test_folder__numbers_classes_and_images_by_name(folders):
    source = open_source("pets", "train", {"pets": folders})
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(len(source))] == [0, 0, 1, 1, 1]
    assert all(source.image(index).mode == "RGB" for index in range(len(source)))
    expected = Image.open(folders / "train" / "cat" / "b.png")
    assert source.image(1).tobytes() == expected.tobytes()
    assert pickle.loads(pickle.dumps(source)).image(1).tobytes() == expected.tobytes()


def test_folder__takes_the_classes_of_both_splits_for_the_same(folders):
    source = open_source("pets", "val", {"pets": folders})
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(len(source))] == [0, 0, 1, 1]


def test_folder__refuses_an_empty_class(folders):
    for number in range(12):
        (folders / "train" / f"e{number:02}").mkdir()
    with pytest.raises(DataError, match=r"got none for e00, .*e09 and 2 more"):
        open_source("pets", "train", {"pets": folders})


def test_folder__refuses_a_split_without_classes(folders):
    shutil.rmtree(folders / "val")
    (folders / "val").mkdir()
    with pytest.raises(DataError, match="must hold a folder for each class"):
        fingerprint("pets", {"pets": folders})


def test_folder__refuses_other_classes_in_validation(folders):
    (folders / "val" / "dog").rename(folders / "val" / "fox")
    with pytest.raises(
        DataError, match="must hold the same classes, but only one of them has dog, fox"
    ):
        open_source("pets", "val", {"pets": folders})


def test_folder__names_an_image_that_cannot_be_read(folders):
    source = open_source("pets", "train", {"pets": folders})
    whole = bytearray(_encoded(1))
    whole[60:80] = bytes(20)
    (folders / "train" / "cat" / "b.png").write_bytes(whole)
    with pytest.raises(DataError, match=r"cat/b\.png must be a readable image") as caught:
        source.image(1)
    assert not caught.value.retry
    (folders / "train" / "cat" / "b.png").unlink()
    with pytest.raises(
        UnreachableError, match=r"cat/b\.png cannot be read: No such file"
    ) as caught:
        source.image(1)
    assert caught.value.retry


def test_fingerprint__of_the_embedded_set_is_known():
    assert (
        fingerprint("fashion-scenes", {})
        == "aa927a3e371d2093454189559e5ae20604ee5574b7f3ee625c0b39fd6dc3eaad"
    )


def test_fingerprint__sees_a_changed_size(folders):
    before = fingerprint("pets", {"pets": folders})
    _write(folders / "val" / "dog" / "b.png", _encoded(1, size=(9, 9)))
    assert fingerprint("pets", {"pets": folders}) != before


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("part", [slice(0, 0), slice(0, 30), slice(0, -40), slice(20, None)])
def test_fingerprint__finds_images_that_are_cut_off(folders, kind, part):
    path = folders / "val" / "cat" / f"cut.{kind.lower()}"
    path.write_bytes(_encoded(3, kind, size=(90, 60)))
    fingerprint("pets", {"pets": folders})
    path.write_bytes(path.read_bytes()[part])
    with pytest.raises(DataError, match=rf"got 1 unreadable: .*cut\.{kind.lower()}; replace"):
        fingerprint("pets", {"pets": folders})


def test_fingerprint__names_ten_unreadable_images_and_counts_the_rest(folders):
    for number in range(12):
        _write(folders / "train" / "cat" / f"x{number:02}.jpg", b"<html>not found</html>")
    with pytest.raises(DataError, match=r"got 12 unreadable: .*x00\.jpg, .*x09\.jpg and 2 more"):
        fingerprint("pets", {"pets": folders})


def test_require_readable__takes_a_jpeg_with_something_after_its_end(tmp_path):
    _write(tmp_path / "long.jpg", _encoded(3, "JPEG", size=(90, 60)) + bytes(10_000))
    decoding.require_readable([tmp_path / "long.jpg"])


def test_require_readable__looks_at_an_even_sample_of_many(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_MOST_FILES", 4)
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    with pytest.raises(DataError, match=r"got 3 unreadable: .*0\.png, .*3\.png, .*6\.png; replace"):
        decoding.require_readable(paths)
    for path in paths[::3]:
        _write(path, _encoded(0))
    decoding.require_readable(paths)


def test_image_files__lists_paths_in_order_with_sizes(folders):
    files = layout.image_files(folders / "train")
    assert [file.path for file in files] == sorted(file.path for file in files)
    assert all(file.num_bytes == (folders / "train" / file.path).stat().st_size for file in files)


def test_fingerprint__is_of_the_content_and_not_of_the_place(folders, tmp_path):
    before = fingerprint("a", {"a": folders})
    copy = shutil.copytree(folders, tmp_path / "elsewhere")
    (copy / "val").rename(copy / "validation")
    assert fingerprint("b", {"b": copy}) == before
    for path in [path for path in copy.rglob("*") if path.suffix in (".png", ".jpg", ".JPEG")]:
        renamed = path.rename(path.with_name(f"renamed-{path.name}"))
        assert fingerprint("b", {"b": copy}) != before
        renamed.rename(path)
    assert fingerprint("b", {"b": copy}) == before


def test_fingerprint__finds_links_that_lead_nowhere(folders):
    (folders / "train" / "cat" / "link.jpg").symlink_to(folders / "absent.jpg")
    with pytest.raises(DataError, match=r"got 1 unreadable: .*link\.jpg"):
        fingerprint("pets", {"pets": folders})


@pytest.mark.parametrize("read", [fingerprint, lambda name, roots: open_source(name, "val", roots)])
@pytest.mark.parametrize("place", ["val/loop", "val/cat/loop", "val/cat/loop.jpg"])
def test_data__names_a_link_that_leads_to_itself(folders, read, place):
    (folders / place).symlink_to(folders / place)
    with pytest.raises(DataError, match=rf"{place} cannot be read: Too many levels .* or remove"):
        read("pets", {"pets": folders})


def test_reading__names_the_place_where_the_system_names_none():
    told = pytest.raises(
        UnreachableError, match=r"a\.png cannot be read: Input/output error\. Make it"
    )
    with told, errors.reading("a.png"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("limit", "most", "seen"),
    [
        ("_HASHED_BYTES", 1 << 20, True),
        ("_HASHED_BYTES", 1, False),
        ("_HASHED_FILES", 9, True),
        ("_HASHED_FILES", 8, False),
    ],
)
def test_fingerprint__sees_images_exchanged_in_small_sets(folders, monkeypatch, limit, most, seen):
    monkeypatch.setattr(fingerprinting, limit, most)
    before = fingerprint("pets", {"pets": folders})
    path = folders / "val" / "cat" / "b.png"
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    assert (fingerprint("pets", {"pets": folders}) != before) == seen
