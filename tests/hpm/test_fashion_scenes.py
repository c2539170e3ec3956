import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from hpm.data.errors import DataError
from hpm.data.fashion_scenes import manifest, scenes
from hpm.data.fashion_scenes.render import NUM_WORDS, integral, render, silhouette
from hpm.data.fashion_scenes.scenes import CLASSES, PHOTOGRAPHS, FashionScenes, rendered

SPLITS = ("train", "val")
ASSETS = Path(manifest.__file__).parent / "assets"


@pytest.mark.parametrize(
    ("split", "index", "digest"),
    [
        ("train", 0, "2e105d0e53f602f40e9f78c71ed02bd3ce334ec41601ba3dd4eb4a294e8326be"),
        ("train", 7999, "8da9fc8f77d434443717b6ae4f25c6b8bc6803b8a7dfe84345ac60fe15e75e3c"),
        ("val", 0, "3935bcada094da1c3b71a764f19d7c913fc3081f266d10f4d19b8aabe2d38782"),
        ("val", 1999, "45bbb95e41d46c706134b685343f4924eac9714ac11d62e5d7bd6f8614ffb149"),
    ],
)
def test_scene__has_known_bytes(split, index, digest):
    source = FashionScenes.open(split)
    content = source.image(index).tobytes() + source.mask(index).tobytes()
    assert hashlib.sha256(content + bytes([source.label(index)])).hexdigest() == digest


def test_sources__are_those_of_the_manifest_and_small():
    expected = manifest.read_manifest().sources
    files = {path.name: path.read_bytes() for path in ASSETS.iterdir()}
    assert {name: hashlib.sha256(c).hexdigest() for name, c in files.items()} == dict(expected)
    assert sum(map(len, files.values())) < 5_000_000


def test_notice__credits_every_source_and_keeps_the_licence():
    notice = (ASSETS.parent / "NOTICE.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in notice for path in ASSETS.iterdir())
    assert "Zalando SE" in notice
    assert "WITHOUT WARRANTY OF ANY KIND" in notice


def test_read_source__refuses_a_changed_file(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "manifest.json").write_bytes((ASSETS.parent / "manifest.json").read_bytes())
    monkeypatch.setattr(manifest, "_HERE", tmp_path)
    with pytest.raises(DataError, match=r"brick\.jpg must be the file that came with hpm"):
        manifest.read_source("brick.jpg")
    (tmp_path / "assets" / "brick.jpg").write_bytes(b"another")
    with pytest.raises(DataError, match=r"brick\.jpg must be the file that came with hpm"):
        manifest.read_source("brick.jpg")


def test_rendered__refuses_bytes_that_differ_from_everybody_elses(monkeypatch):
    other = manifest.Manifest(sources=manifest.read_manifest().sources, rendered={"val": "0" * 64})
    monkeypatch.setattr(scenes, "read_manifest", lambda: other)
    with pytest.raises(DataError, match="same bytes everywhere"):
        rendered.__wrapped__("val")


def test_rendered__renders_once():
    assert rendered("val") is rendered("val")


@pytest.mark.parametrize(("split", "num_images"), [("train", 8000), ("val", 2000)])
def test_split__has_its_size_and_balanced_classes(split, num_images):
    source = FashionScenes.open(split)
    assert len(source) == num_images
    assert source.classes == CLASSES
    counts = np.bincount([source.label(index) for index in range(num_images)])
    assert counts.shape == (10,)
    assert counts.min() > 0.085 * num_images
    assert counts.max() < 0.115 * num_images


def test_splits__share_no_photograph_and_no_garment():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])
    assert {f"{name}.jpg" for names in PHOTOGRAPHS.values() for name in names} == {
        path.name for path in ASSETS.glob("*.jpg")
    }
    covered = np.zeros(10_000, dtype=int)
    for part in scenes._GARMENTS.values():
        covered[part] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("split", SPLITS)
def test_mask__covers_a_part_of_every_scene(split):
    share = rendered(split).masks.mean((1, 2))
    assert share.min() > 0.02
    assert share.max() < 0.98
    assert 0.3 < share.mean() < 0.45


def _garments(value, num=50):
    garments = np.zeros((num, 28, 28), np.uint8)
    garments[:, 4:24, 8:20] = value
    return garments


def _words(num=50):
    return np.random.Philox(key=7).random_raw((num, NUM_WORDS))


def test_mask__is_where_the_garment_decides_the_colour():
    photographs = [integral(np.full((100, 120, 3), 90, np.uint8))]
    dark, masks = render(_garments(17), photographs, _words())
    bright, same = render(_garments(255), photographs, _words())
    np.testing.assert_array_equal(masks, same)
    outside = (dark == 90).all(-1)
    changed = (bright.astype(int) - dark).max(-1) > 0
    assert not (changed & outside & (bright == 90).all(-1)).any()
    assert changed[masks].mean() > 0.99
    soft_edge = changed & ~masks
    assert soft_edge.sum() < 0.4 * masks.sum()


def test_render__shows_the_photograph_outside_the_garment():
    photograph = np.arange(100 * 100 * 3, dtype=np.uint32).reshape(100, 100, 3) % 251
    images, masks = render(_garments(0), [integral(photograph.astype(np.uint8))], _words())
    assert not masks.any()
    assert images.std((1, 2)).min() > 1


def test_render__averages_whole_pixels_of_the_photograph():
    photograph = np.tile(np.array([[0, 200], [200, 0]], np.uint8), (60, 60))[..., None].repeat(
        3, -1
    )
    words = _words()
    words[:, 1] = int(0.5 * 2**64)  # the crop's side: twice the scene's
    images, _ = render(_garments(0), [integral(photograph)], words)
    assert (images == 100).all()


def test_render__does_not_depend_on_what_else_is_rendered():
    photographs = [integral(np.full((100, 120, 3), value, np.uint8)) for value in (10, 200)]
    together, masks = render(_garments(99), photographs, _words())
    alone, mask = render(_garments(99)[20:21], photographs, _words()[20:21])
    np.testing.assert_array_equal(together[20:21], alone)
    np.testing.assert_array_equal(masks[20:21], mask)


def test_silhouette__fills_holes_but_not_concave_outlines():
    garment = np.zeros((1, 28, 28), np.uint8)
    garment[0, 5:20, 5:20] = 100
    garment[0, 10:14, 10:14] = 0  # a hole
    garment[0, 15:20, 8:12] = 16  # a notch, open below
    filled = silhouette(garment)[0]
    assert filled[5:15, 5:20].all()
    assert not filled[15:20, 8:12].any()
    assert filled.sum() == 15 * 15 - 5 * 4


def test_source__survives_pickling_without_its_pixels():
    source = FashionScenes.open("val")
    packed = pickle.dumps(source)
    assert len(packed) < 200
    assert pickle.loads(packed).image(3).tobytes() == source.image(3).tobytes()
