import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hpm.config import Data
from hpm.data.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    crop_box,
    evaluation_view,
    normalize,
    training_view,
)
from hpm.randomness import Purpose, generator


def _image(width, height):
    pixels = generator(Purpose.PROBE, seed=width, index=height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


def _boxes(width, height, *, min_crop=0.2, num=2000):
    return np.array([
        crop_box(width, height, min_crop=min_crop, rng=generator(Purpose.VIEW, seed=0, index=index))
        for index in range(num)
    ])  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(32, 32), (500, 375), (300, 451)])
def test_crop_box__stays_inside_and_keeps_area_and_aspect(width, height):
    left, top, right, bottom = _boxes(width, height).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    w, h = right - left, bottom - top
    slack = 1 / min(w.min(), h.min())
    assert (w / h).min() > 3 / 4 * (1 - slack)
    assert (w / h).max() < 4 / 3 * (1 + slack)
    share = w * h / (width * height)
    assert share.min() > 0.2 * (1 - 2 * slack)
    assert share.min() < 0.25
    assert share.max() > 0.85


def test_crop_box__reaches_every_edge():
    left, top, right, bottom = _boxes(40, 40).T
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, 40, 40)


def test_crop_box__falls_back_to_the_middle_of_a_long_image():
    assert set(map(tuple, _boxes(1000, 10, min_crop=0.9, num=50))) == {(493, 0, 506, 10)}
    assert set(map(tuple, _boxes(10, 1000, min_crop=0.9, num=50))) == {(0, 493, 10, 506)}


def test_crop_box__of_the_whole_area_is_the_whole_square_or_less():
    w, h = (lambda b: (b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]))(_boxes(64, 64, min_crop=1.0))
    assert (w * h >= 0.97 * 64 * 64).all()


def _view(image, index=0, **settings):
    data = Data(image_size=24, **settings)
    return training_view(image, data, generator(Purpose.VIEW, seed=1, index=index))


def test_training_view__is_the_crop_resized_as_torchvision_does():
    image = _image(60, 45)
    for index in range(20):
        rng = generator(Purpose.VIEW, seed=1, index=index)
        rng.random()
        left, top, right, bottom = crop_box(60, 45, min_crop=0.2, rng=rng)
        expected = v2.functional.resized_crop(
            image, top, left, bottom - top, right - left, [24, 24], v2.InterpolationMode.BICUBIC
        )
        np.testing.assert_array_equal(_view(image, index, flip=False), np.asarray(expected))


def test_training_view__mirrors_half_and_flip_moves_no_crop():
    image = _image(40, 40)
    mirrored = 0
    for index in range(400):
        plain, view = _view(image, index, flip=False), _view(image, index)
        is_mirrored = not np.array_equal(plain, view)
        np.testing.assert_array_equal(view, plain[:, ::-1] if is_mirrored else plain)
        mirrored += is_mirrored
    assert 160 < mirrored < 240


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (224, 300), (20, 31), (33, 32)])
@pytest.mark.parametrize(("image_size", "shorter"), [(32, 36), (224, 256), (240, 240), (384, 384)])
def test_evaluation_view__is_torchvisions(size, image_size, shorter):
    image = _image(*size)
    resize = v2.Resize(shorter, v2.InterpolationMode.BICUBIC)
    expected = v2.CenterCrop(image_size)(resize(image))
    np.testing.assert_array_equal(evaluation_view(image, image_size), np.asarray(expected))


def test_evaluation_view__leaves_an_image_of_that_size_alone():
    image = _image(32, 32)
    np.testing.assert_array_equal(evaluation_view(image, 32), np.asarray(image))


def test_normalize__is_torchvisions():
    pixels = np.stack([np.asarray(_image(16, 16)) for _ in range(3)])
    images = normalize(pixels)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    expected = v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(images, expected, rtol=0, atol=0)
