"""Batches for a detector follow from their keys, whoever makes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpm.data.object_sources import open_objects
from hpm.data.sampling import Key, load
from hpm.evaluate.detect.batches import FittedViews, JitteredViews


@pytest.fixture
def views(blocks, small):
    return JitteredViews(open_objects("blocks", blocks.data)[0], small, 7, 4)


def key(*indices, epoch=0, step=0):
    return Key(step, epoch, np.array(indices, dtype=np.int64))


def test_batch__an_image_is_the_same_in_every_company(views):
    whole, part = views(key(3, 5, 8)), views(key(5, step=9))
    for name in ("images", "coins", "seeds", "indices"):
        assert getattr(part, name)[0].equal(getattr(whole, name)[1]), name
    mine, theirs = (b.targets(torch.device("cpu"))[n] for b, n in ((part, 0), (whole, 1)))
    for one, other in zip(mine, theirs, strict=True):
        assert one.equal(other)


def test_batch__another_epoch_has_other_draws(views):
    first, second = views(key(3)), views(key(3, epoch=1))
    for name in ("images", "coins", "seeds"):
        assert not getattr(first, name).equal(getattr(second, name)), name


def test_batch__another_seed_has_other_draws(views):
    other = replace(views, seed=8)(key(3))
    for name in ("images", "coins", "seeds"):
        assert not getattr(views(key(3)), name).equal(getattr(other, name)), name


def test_batch__boxes_bound_the_masks(views):
    batch = views(key(*range(12)))
    assert batch.counts.sum() == len(batch.boxes) == len(batch.labels) == len(batch.masks)
    assert set(batch.labels.tolist()) <= {1, 2}
    for (left, top, right, bottom), mask in zip(
        batch.boxes.int().tolist(), batch.masks, strict=True
    ):
        inner = mask[top:bottom, left:right]
        assert inner.sum() == mask.sum() > 0
        assert inner[0].any()
        assert inner[:, -1].any()
    assert batch.coins.shape == (12, 4)
    assert ((batch.coins >= 0) & (batch.coins < 1)).all()


def test_batch__objects_out_of_sight_are_left_out(views):
    far = replace(views, config=replace(views.config, min_scale=4.0, max_scale=4.0))
    counts = far(key(*range(12))).counts.tolist()
    assert set(counts) == {0, 1}


def test_batches__are_the_same_whoever_loads_them(views):
    keys = [key(0, 1), key(2, 3, step=1)]
    for here, there in zip(
        load(views, iter(keys), loaders=0), load(views, iter(keys), loaders=1), strict=True
    ):
        for one, other in zip(here, there, strict=True):
            assert one.equal(other)


def test_fitted__says_what_is_shown(blocks):
    batch = FittedViews(open_objects("blocks", blocks.data)[1], 64)(key(0, 1))
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.shown.tolist() == [[64, 48]] * 2
    assert batch.sizes.tolist() == [[32, 24]] * 2
    assert batch.images[:, :, 48:].abs().max() < 0.02


def test_batches__of_fashion_scenes_have_a_garment_each(small):
    train, val = open_objects("fashion-scenes", {})
    batch = JitteredViews(train, small, 7, 0)(key(0, 7999))
    assert batch.counts.tolist() == [1, 1]
    assert batch.coins.shape == (2, 0)
    assert batch.labels.tolist() == [train.objects(i).labels[0] + 1 for i in (0, 7999)]
    fitted = FittedViews(val, 32)(key(5))
    assert fitted.shown.tolist() == fitted.sizes.tolist() == [[32, 32]]
