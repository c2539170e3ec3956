"""What is done to the images and labels of fine-tuning: distortions, mixing, and their draws."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpm.config import Data
from hpm.data.sampling import Key, Shares, training_keys
from hpm.data.source import open_source
from hpm.data.views import normalize, training_view
from hpm.evaluate.augment import Distortion, seeded
from hpm.evaluate.finetune_config import Augment
from hpm.evaluate.finetune_views import Views
from hpm.evaluate.mixing import Mixing, draw_mixing, mix, smooth
from hpm.randomness import Purpose, generator

OFFICIAL = Augment()
OFF = Augment(rand_magnitude=0, erasing=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0)


@pytest.fixture
def views(place):
    """Views of the coloured images; without arguments the official augmentation."""

    def build(augment=OFFICIAL, seed=0):
        return Views(
            source=open_source("colours", "train", place.data),
            data=Data(name="colours", image_size=16, min_crop=0.08),
            augment=augment,
            distortion=Distortion.of(augment, 16),
            branches=4,
            seed=seed,
        )

    return build


def key(*indices, step=0, epoch=0):
    return Key(step, epoch, np.array(indices))


def draws(index=0, seed=0):
    return generator(Purpose.AUGMENT, seed=seed, index=index)


def photograph(side=32):
    """Smooth colours without two equal pixels."""
    rows, columns = np.mgrid[0:side, 0:side]
    pixels = np.stack([rows * 4 + 40, columns * 4 + 60, 200 - rows - 2 * columns], axis=-1)
    return pixels.astype(np.uint8)


def globals_now():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def test_seeded__gives_equal_draws_and_the_states_back():
    def drawn():
        with seeded(draws()):
            return random.gauss(0, 1), np.random.rand(), torch.rand(()).item()

    torch.manual_seed(1)
    random.gauss(0, 1)
    before = globals_now()
    first = drawn()
    after = globals_now()
    assert first == drawn()
    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert before[1][2:] == after[1][2:]
    assert torch.equal(before[2], after[2])


def test_seeded__gives_the_states_back_after_an_error():
    before = random.getstate()
    with pytest.raises(ZeroDivisionError), seeded(draws()):
        _ = random.random() / 0
    assert random.getstate() == before


def test_distortion__depends_on_its_draws_alone():
    official, view = Distortion.of(Augment(erasing=1.0), 32), photograph()
    first = official(view, draws())
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(official(view, draws()), first)
    others = [official(view, draws(index)) for index in range(1, 9)]
    assert not any(torch.equal(other, first) for other in others)


def test_distortion__leaves_alone_what_is_off():
    view = photograph()
    assert torch.equal(Distortion.of(OFF, 32)(view, draws()), normalize(view[None])[0])


def test_distortion__erases_a_rectangle_by_noise():
    erase = Distortion.of(replace(OFF, erasing=1.0), 32)
    plain = normalize(photograph()[None])[0]
    for index in range(20):
        erased = erase(photograph(), draws(index))
        changed = (erased != plain).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
        box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        assert 0.01 < box.numel() / changed.numel() < 0.4
        assert len(erased[0][changed].unique()) == box.numel(), "each pixel has noise of its own"


def test_distortion__erases_so_many_images():
    erase, plain = Distortion.of(replace(OFF, erasing=0.25), 32), normalize(photograph()[None])[0]
    erased = [not torch.equal(erase(photograph(), draws(index)), plain) for index in range(400)]
    assert 0.17 < np.mean(erased) < 0.33


def test_distortion__is_stronger_with_magnitude():
    plain = normalize(photograph()[None])[0]

    def change(magnitude):
        distort = Distortion.of(replace(OFF, rand_magnitude=magnitude), 32)
        changes = [(distort(photograph(), draws(i)) - plain).abs().mean() for i in range(60)]
        return torch.stack(changes).mean()

    assert 0 < change(1) < change(9)


def test_distortion__has_no_magnitude_that_pillow_refuses():
    strongest = Distortion.of(replace(OFF, rand_magnitude=10), 32)
    images = torch.stack([strongest(photograph(), draws(index)) for index in range(400)])
    assert images.isfinite().all()


def test_view__is_the_crop_that_is_keyed_then_distorted(views, place):
    made = views(OFF, seed=7)
    part = made(key(3, 200, epoch=2))
    source = open_source("colours", "train", place.data)
    for image, label, index in zip(part.images, part.targets.argmax(1), (3, 200), strict=True):
        rng = generator(Purpose.VIEW, seed=7, epoch=2, index=index)
        expected = training_view(source.image(index), made.data, rng)
        assert torch.equal(image, normalize(np.stack([expected]))[0])
        assert label == source.label(index)


def test_view__of_an_image_follows_from_seed_epoch_and_index_alone(views):
    plain = replace(OFFICIAL, mixup=0.0, cutmix=0.0)
    made = views(plain)
    whole = made(key(1, 2, 3, 4, epoch=1))
    alone = made(key(3, epoch=1, step=77))
    for name in ("images", "targets", "coins"):
        assert torch.equal(getattr(whole, name)[2:3], getattr(alone, name)), name
    for other in (made(key(3, epoch=2)), views(plain, seed=1)(key(3, epoch=1))):
        assert not torch.equal(other.images, alone.images)
        assert not torch.equal(other.coins, alone.coins)


def test_view__moves_no_global_generator(views):
    before = globals_now()
    views()(key(*range(16)))
    after = globals_now()
    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize(("parts", "world"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_view__of_a_step_is_the_same_however_it_is_shared(views, parts, world):
    made = views()

    def step(parts, world):
        shares = [Shares(16, parts, rank, world) for rank in range(world)]
        dealt = [list(training_keys(300, range(5, 6), seed=0, shares=share)) for share in shares]
        given = [made(dealt[rank][part]) for part in range(parts) for rank in range(world)]
        return [torch.cat(tensors) for tensors in zip(*given, strict=True)]

    for shared, alone in zip(step(parts, world), step(1, 1), strict=True):
        assert torch.equal(shared, alone)


def test_smooth__spreads_a_part_of_the_label():
    targets = smooth(torch.tensor([2, 0]), classes=5, smoothing=0.1)
    torch.testing.assert_close(targets[0], torch.tensor([0.02, 0.02, 0.92, 0.02, 0.02]))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    assert smooth(torch.tensor([1]), classes=3, smoothing=0.0).tolist() == [[0, 1, 0]]


def pairs():
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 8, 8, generator=rng)
    return images, smooth(torch.tensor([0, 1, 2, 3, 4, 4]), classes=5, smoothing=0.1)


def test_mix__weighs_pixels_and_labels_alike():
    images, targets = pairs()
    mixed, labels = mix(images, targets, Mixing(0.3, None))
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)):
        torch.testing.assert_close(mixed[one], 0.3 * images[one] + 0.7 * images[other])
        torch.testing.assert_close(labels[one], 0.3 * targets[one] + 0.7 * targets[other])
    torch.testing.assert_close(labels.sum(1), torch.ones(6))


def test_mix__takes_a_box_of_the_neighbour():
    images, targets = pairs()
    before = images.clone()
    box = slice(1, 4), slice(5, 8)
    mixed, labels = mix(images, targets, Mixing(1 - 9 / 64, box))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[box] = True
    for one, other in ((0, 1), (1, 0), (4, 5)):
        assert torch.equal(mixed[one][:, inside], images[other][:, inside])
        assert torch.equal(mixed[one][:, ~inside], images[one][:, ~inside])
        own = (~inside).float().mean()
        torch.testing.assert_close(labels[one], own * targets[one] + (1 - own) * targets[other])
    assert torch.equal(images, before)


def test_mix__wants_pairs():
    images, targets = pairs()
    with pytest.raises(AssertionError, match="even number"):
        mix(images[:3], targets[:3], Mixing(0.5, None))


def drawn(augment, count=300):
    steps = (generator(Purpose.MIX, seed=0, index=step) for step in range(count))
    return [draw_mixing(augment, 32, rng) for rng in steps]


def test_draw_mixing__weighs_a_box_by_its_area():
    found = drawn(replace(OFFICIAL, mixup=0.0))
    for own, (rows, columns) in found:
        assert 0 <= rows.start <= rows.stop <= 32
        assert 0 <= columns.start <= columns.stop <= 32
        area = len(range(32)[rows]) * len(range(32)[columns])
        assert own == pytest.approx(1 - area / 32**2)
    assert len({own for own, _ in found}) > 50


def test_draw_mixing__takes_what_is_on_and_of_both_either():
    assert all(mixing.box is None for mixing in drawn(replace(OFFICIAL, cutmix=0.0)))
    boxes = [mixing.box is not None for mixing in drawn(OFFICIAL)]
    assert 0.4 < np.mean(boxes) < 0.6


def test_draw_mixing__follows_its_distribution():
    # A Beta(a, a) has mean 1/2 and variance 1 / (4 * (2 * a + 1)).
    own = [mixing.own for mixing in drawn(replace(OFFICIAL, cutmix=0.0), count=2000)]
    assert np.mean(own) == pytest.approx(0.5, abs=0.03)
    assert np.var(own) == pytest.approx(1 / (4 * 2.6), rel=0.1)


def test_view__is_mixed_with_its_neighbour(views):
    both = replace(OFF, mixup=0.8)
    plain, mixed = (views(augment)(key(0, 60, 120, 180, step=9)) for augment in (OFF, both))
    mixing = draw_mixing(both, 16, generator(Purpose.MIX, seed=0, index=9))
    torch.testing.assert_close(
        mixed.images[2], mixing.own * plain.images[2] + (1 - mixing.own) * plain.images[3]
    )
    assert not torch.equal(mixed.images, views(both)(key(0, 60, 120, 180, step=10)).images)
    assert mixed.indices.tolist() == [0, 60, 120, 180]
