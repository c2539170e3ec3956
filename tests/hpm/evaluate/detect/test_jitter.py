"""The square views of images, and the objects that move with them."""

import numpy as np
import pytest
from PIL import Image

from hpm.data.jitter import fitted_view, jittered_view
from hpm.data.objects import tight_boxes
from hpm.data.views import IMAGENET_MEAN

PADDING = [round(255 * mean) for mean in IMAGENET_MEAN]


def _scene(width=40, height=20, box=(10, 5, 18, 15)):
    """A bright block on black."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels), (pixels[None, :, :, 0] > 0)


def _jitter(seed, scene=None, size=32, scales=(0.3, 2.0), flip=True):
    image, masks = scene or _scene()
    return jittered_view(
        image,
        masks,
        image_size=size,
        scales=scales,
        flip=flip,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("seed", range(8))
def test_jitter__moves_masks_with_their_objects(seed):
    shown = _jitter(seed)
    assert shown.pixels.shape == (32, 32, 3)
    width, height = shown.size
    bright = (shown.pixels[:, :, 0] > 128) & (shown.pixels[:, :, 1] > 128)
    bright[height:] = bright[:, width:] = False
    # The image is interpolated and the mask is not: they may differ along the block's edge.
    assert (bright != shown.masks[0]).sum() <= 2 * (width + height) * 0.5
    assert np.array_equal(shown.pixels[31, 31], PADDING) or (width, height) == (32, 32)
    assert not shown.masks[0, height:].any()
    assert not shown.masks[0, :, width:].any()


def test_jitter__at_scale_1_only_pads():
    image, masks = _scene()
    shown = _jitter(0, size=40, scales=(1.0, 1.0), flip=False)
    assert shown.size == (40, 20)
    np.testing.assert_array_equal(shown.pixels[:20], np.asarray(image))
    np.testing.assert_array_equal(shown.masks[:, :20], masks)
    assert (shown.pixels[20:] == PADDING).all()


def test_jitter__scales_lie_in_their_range():
    widths = [_jitter(seed, scales=(0.5, 1.0), flip=False).size[0] for seed in range(200)]
    assert min(widths) in (16, 17)
    assert max(widths) in (31, 32)
    assert np.mean(widths) == pytest.approx(24, abs=1)


def test_jitter__crops_everywhere():
    """At twice the size, what is seen lies anywhere in the image."""
    image, _ = _scene()
    gradient = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (20, 40, 3))
    scene = Image.fromarray(gradient.copy()), np.zeros((0, 20, 40), dtype=bool)
    lefts = [
        int(_jitter(seed, scene, scales=(2.0, 2.0), flip=False).pixels[0, 0, 0]) // 6
        for seed in range(100)
    ]
    assert min(lefts) <= 1
    assert max(lefts) >= 18
    assert image.size == (40, 20)


def test_jitter__mirrors_half_of_the_views():
    halves = [_jitter(seed, scales=(1.0, 1.0)).masks[0].nonzero()[1].mean() for seed in range(100)]
    assert set(np.round(halves, 3)) == {min(np.round(halves, 3)), max(np.round(halves, 3))}
    assert 30 <= sum(half == max(halves) for half in halves) <= 70
    unmirrored = {_jitter(s, scales=(1.0, 1.0), flip=False).masks.tobytes() for s in range(9)}
    assert len(unmirrored) == 1


def test_jitter__follows_its_draws_alone():
    first, again, other = (_jitter(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


def test_jitter__objects_out_of_sight_have_empty_masks():
    scene = _scene(box=(0, 0, 2, 2))
    seen = [_jitter(s, scene, scales=(2.0, 2.0), flip=False).masks.any() for s in range(40)]
    assert set(seen) == {True, False}


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 33), (500, 1)])
def test_fitted__shows_the_whole_image(width, height):
    image = Image.new("RGB", (width, height), (9, 8, 7))
    shown = fitted_view(image, image_size=32)
    assert max(shown.size) == 32
    across, down = shown.size
    assert (shown.pixels[:down, :across] == (9, 8, 7)).all()
    assert (shown.pixels[down:] == PADDING).all()
    assert (shown.pixels[:, across:] == PADDING).all()
    assert across / down == pytest.approx(width / height, rel=0.05) or 1 in shown.size


def test_tight_boxes__touch_their_masks():
    _, masks = _scene()
    np.testing.assert_array_equal(tight_boxes(masks), [[10, 5, 18, 15]])
    assert tight_boxes(np.zeros((0, 4, 4), dtype=bool)).shape == (0, 4)
