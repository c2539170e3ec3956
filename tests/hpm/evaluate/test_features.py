import re

import numpy as np
import pytest
import torch

from hpm.config import Data
from hpm.data.errors import DataError
from hpm.data.loading import EvaluationViews
from hpm.data.sampling import Key
from hpm.data.source import open_source
from hpm.evaluate import knn, linear
from hpm.evaluate.config import EvalData, Knn, Linear, Pixels
from hpm.evaluate.features import BATCH, Features, export_pixels, load_frozen
from hpm.rules import ConfigError
from hpm.trainer import TRAINER
from hpm.weights import export_encoder, load_encoder


def extract(export, place, split="train", pool="cls"):
    encoder = load_frozen(export, data=None, pool=pool)
    features = Features(open_source("colours", split, place.data), encoder.width)
    for _ in features.fill(encoder, loaders=place.loaders):
        pass
    return features


def first_images(place, count):
    source = open_source("colours", "train", place.data)
    return EvaluationViews(source, 16)(Key(0, 0, np.arange(count))).images


def test_features__cls_and_mean_are_the_normalised_tokens(encoder, place):
    vit, _ = load_encoder(encoder)
    with torch.no_grad():
        tokens = vit(first_images(place, BATCH))
    for pool, expected in (("cls", tokens[:, 0]), ("mean", tokens[:, 1:].mean(dim=1))):
        assert torch.equal(extract(encoder, place, pool=pool).rows_ND[:BATCH], expected)


def test_features__pixels_are_the_evaluation_view(pixels, place):
    images = first_images(place, 300)
    assert torch.equal(extract(pixels, place).rows_ND, images.flatten(1))


def test_features__cover_all_images_in_order(encoder, place):
    for split, count in (("train", 300), ("val", 142)):
        features = extract(encoder, place, split)
        assert features.filled == count
        assert features.labels_N.tolist() == sorted(index % 6 for index in range(count))


def test_features__can_be_trained_on(encoder, place):
    frozen = load_frozen(encoder, data=None, pool="cls")
    rows = frozen.encode(first_images(place, 4))
    assert not rows.requires_grad
    layer = torch.nn.Linear(frozen.width, 1)
    layer(rows).sum().backward()
    assert layer.weight.grad is not None


def test_features__a_loader_process_brings_the_rest(encoder, place):
    whole = extract(encoder, place)
    frozen = load_frozen(encoder, data=None, pool="cls")
    rest = Features(whole.source, frozen.width)
    state = whole.state()
    rest.restore({name: rows[:BATCH] for name, rows in state.items()})
    assert [rest.done for _ in rest.fill(frozen, loaders=1)] == [2, 3]
    torch.testing.assert_close(rest.state(), state, rtol=0, atol=0)


class Vast:
    """A split of ImageNet's size, which nobody may read."""

    classes = ("a",)

    def __len__(self):
        return 1_281_167


def test_features__that_fit_into_no_memory_are_refused_at_once(tmp_path):
    export_pixels(tmp_path, Data())
    frozen = load_frozen(tmp_path, data=None, pool="cls")
    said = "150528 values of each of 1281167 images need 718 GiB. Give a pixels reference a smaller"
    with pytest.raises(DataError, match=re.escape(said)):
        Features(Vast(), frozen.width)


# In bytes of float32: what the 142 images of validation need, or the 300 of training.
@pytest.mark.parametrize("room", [lambda w: 4 * 142 * w - 1, lambda w: 4 * 300 * w - 1, None])
@pytest.mark.parametrize("of_pixels", [False, True])
@pytest.mark.parametrize(
    ("stage_run", "config"),
    [
        (knn.run, Knn(k=(3,), report_k=3)),
        (linear.run, Linear(batch_size=64)),
        (linear.run, Linear(batch_size=64, augment=False)),
    ],
)
def test_features__planning_refuses_what_the_stage_would(
    stage, place, settings, request, monkeypatch, stage_run, config, of_pixels, room
):
    parent = Pixels(data=settings.data) if of_pixels else settings
    width = 3 * 16**2 if of_pixels else settings.encoder.width
    if room is not None:
        monkeypatch.setattr("hpm.evaluate.room._ROOM", room(width))
    export = request.getfixturevalue("pixels" if of_pixels else "encoder")
    images = 300 if isinstance(config, Knn) or not config.augment else 142
    if room is None or 4 * images * width <= room(width):
        assert TRAINER.fits(config, parent, place) is None
        next(stage(stage_run, config, export))
        return
    said = f"{width} values of each of {images} images need"
    assert said in TRAINER.fits(config, parent, place)
    with pytest.raises(DataError, match="Features must fit into"):
        next(stage(stage_run, config, export))


def test_own_data__keeps_the_encoders_image_size(encoder, pixels):
    other = EvalData(name="other", flip=False)
    for export in (encoder, pixels):
        images = load_frozen(export, data=other, pool="cls").data
        assert images == Data(name="other", image_size=16, min_crop=0.08, flip=False)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_own_data__wants_some_of_an_image(share):
    with pytest.raises(ConfigError, match=r"min_crop must be in \(0, 1\]"):
        EvalData(name="other", min_crop=share)


def test_role__says_whose_features(encoder, place, tmp_path):
    network, description = load_encoder(encoder)
    student = network.state_dict()
    teacher = {name: value.flip(0) for name, value in student.items()}
    export_encoder(tmp_path, description, student=student, teacher=teacher)
    images = first_images(place, 8)
    first, same, other = (
        load_frozen(folder, data=None, pool="cls", role=role).encode(images)
        for folder, role in ((encoder, "student"), (tmp_path, "student"), (tmp_path, "teacher"))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_role__must_be_one_that_was_exported(encoder, pixels):
    with pytest.raises(DataError, match=r"exported none .*Set role: student") as caught:
        load_frozen(encoder, data=None, pool="cls", role="teacher")
    assert not caught.value.retry
    assert load_frozen(pixels, data=None, pool="cls", role="teacher").width == 3 * 16**2
