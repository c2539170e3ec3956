"""The detector's parts: pyramid, regions, masks; and that all of it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, max_pool2d
from torchvision.ops import roi_align

from hpm.evaluate.detect.masks import crop_masks, paste_mask
from hpm.evaluate.detect.network import Detector, Target
from hpm.evaluate.detect.pyramid import Pyramid
from hpm.evaluate.detect.regions import RegionPool, Sampler
from hpm.evaluate.drop_path import replace_drop_paths
from hpm.evaluate.training import Training
from hpm.weights import load_encoder

SIZES = [(32, 32)] * 2


def _draws(seed=0):
    return torch.Generator().manual_seed(seed)


def _boxes(count, size=32.0, seed=0):
    ends = torch.rand(count, 2, 2, generator=_draws(seed)).sort(dim=1).values * (size - 2)
    return torch.cat([ends[:, 0], ends[:, 1] + 2], dim=1)


@pytest.fixture
def pyramid(encoder):
    torch.manual_seed(0)
    return Pyramid(load_encoder(encoder, image_size=32)[0], 8)


@pytest.fixture
def detector(encoder, small):
    torch.manual_seed(0)
    detector = Detector(load_encoder(encoder, image_size=32)[0], small, classes=2)
    replace_drop_paths(detector)
    return detector


def test_pyramid__has_maps_of_five_strides(pyramid):
    maps = pyramid(torch.randn(2, 3, 32, 32, generator=_draws()))
    # Patches of 8: strides 2, 4, 8, 16 and 32.
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (2, 8, 16, 16),
        "1": (2, 8, 8, 8),
        "2": (2, 8, 4, 4),
        "3": (2, 8, 2, 2),
        "pool": (2, 8, 1, 1),
    }
    torch.testing.assert_close(maps["pool"], max_pool2d(maps["3"], 1, 2))


def test_pyramid__halves_by_max_pooling(pyramid):
    values = torch.randn(2, 3, 8, 8, generator=_draws())
    torch.testing.assert_close(pyramid.scales[3](values), max_pool2d(values, 2))


def test_pyramid__sees_the_last_map_without_the_last_norm(pyramid):
    assert not [name for name, _ in pyramid.named_parameters() if name.startswith("encoder.norm")]
    tokens = pyramid.encoder(torch.randn(1, 3, 32, 32, generator=_draws()))
    assert tokens.shape == (1, 17, 16)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_region_pool__is_the_aligned_roi_align(patch_size):
    finest = 128 // patch_size
    maps = {
        str(level): torch.randn(2, 5, finest >> level, finest >> level, generator=_draws(level))
        for level in range(4)
    }
    pool = RegionPool(7, patch_size)
    boxes = [_boxes(40, seed=1), _boxes(30, seed=2)]
    pooled = pool({**maps, "pool": torch.zeros(2, 5, 1, 1)}, boxes, SIZES)
    levels = pool._levels(torch.cat(boxes))
    rois = torch.cat(
        [torch.cat([torch.full((len(b), 1), float(n)), b], dim=1) for n, b in enumerate(boxes)]
    )
    for level in range(4):
        scale = 4 / patch_size / 2**level
        expected = roi_align(maps[str(level)], rois, 7, scale, sampling_ratio=2, aligned=True)
        mine = levels == level
        torch.testing.assert_close(pooled[mine], expected[mine], rtol=1e-4, atol=1e-5)


def test_region_pool__takes_larger_regions_from_coarser_maps():
    pool = RegionPool(7, 16)
    sides = torch.tensor([10.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 1000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert pool._levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_region_pool__has_the_gradient_of_roi_align():
    maps = [
        torch.randn(1, 3, 8 >> k, 8 >> k, generator=_draws()).requires_grad_() for k in range(4)
    ]
    boxes = torch.tensor([[1.0, 2.0, 9.0, 12.0], [0.0, 0.0, 5.0, 5.0]])
    pooled = RegionPool(2, 16)({str(k): m for k, m in enumerate(maps)}, [boxes], SIZES[:1])
    weights = torch.randn(pooled.shape, generator=_draws())
    (pooled * weights).sum().backward()
    other = maps[0].detach().clone().requires_grad_()
    rois = torch.cat([torch.zeros(2, 1), boxes], dim=1)
    expected = roi_align(other, rois, 2, 0.25, sampling_ratio=2, aligned=True)
    (expected * weights).sum().backward()
    torch.testing.assert_close(maps[0].grad, other.grad, rtol=1e-4, atol=1e-5)


def test_region_pool__of_no_region_is_empty():
    maps = {str(level): torch.zeros(1, 3, 8 >> level, 8 >> level) for level in range(4)}
    assert RegionPool(2, 16)(maps, [torch.zeros(0, 4)], SIZES[:1]).shape == (0, 3, 2, 2)


def test_sampler__chooses_so_many_and_so_large_a_share():
    labels = torch.tensor([1] * 30 + [0] * 40 + [-1] * 30)
    sampler = Sampler(20, 0.25)
    sampler.seeds_B = (0, 1)
    (on, other_on), (off, other_off) = sampler([labels, labels])
    assert (int(on.sum()), int(off.sum())) == (5, 15)
    assert (labels[on] >= 1).all()
    assert (labels[off] == 0).all()
    assert not on.equal(other_on)
    assert not off.equal(other_off)


def test_sampler__draws_for_each_image_alone():
    labels = [torch.randint(-1, 2, (50,), generator=_draws(seed)) for seed in range(3)]
    together, apart = Sampler(8, 0.5), Sampler(8, 0.5)
    together.seeds_B = (5, 6, 7)
    before = torch.random.get_rng_state()
    for image, (on, off) in enumerate(zip(*together(labels), strict=True)):
        apart.seeds_B = (5 + image,)
        assert [m[0].equal(o) for m, o in zip(apart([labels[image]]), (on, off), strict=True)]
    assert torch.random.get_rng_state().equal(before)


def test_sampler__takes_what_there_is():
    sampler = Sampler(8, 0.5)
    sampler.seeds_B = (0,)
    (on,), (off,) = sampler([torch.tensor([1, 0, 0, -1])])
    assert (on.tolist(), off.tolist()) == ([1, 0, 0, 0], [0, 1, 1, 0])


def test_crop_masks__gives_the_share_of_each_cell():
    mask = torch.rand(2, 16, 16, generator=_draws()) > 0.5
    whole = torch.tensor([[0.0, 0.0, 16.0, 16.0]] * 2)
    grids = crop_masks(mask, whole, torch.tensor([0, 1]), 4)
    torch.testing.assert_close(grids, avg_pool2d(mask.float()[:, None], 4)[:, 0])
    finer = crop_masks(mask, whole, torch.tensor([1, 0]), 32)
    expected = mask.float()[[1, 0]].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(finer, expected)


def test_crop_masks__weighs_pixels_that_are_cut():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 1] = True
    grid = crop_masks(mask, torch.tensor([[0.5, 0.5, 1.5, 1.5]]), torch.tensor([0]), 1)
    assert grid.item() == pytest.approx(0.25)
    partly = crop_masks(mask, torch.tensor([[1.0, 1.0, 5.0, 5.0]]), torch.tensor([0]), 2)
    torch.testing.assert_close(partly[0], torch.tensor([[0.25, 0.0], [0.0, 0.0]]))


def test_paste__brings_a_cropped_mask_back():
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 20**2
    box = (15.0, 5.0, 65.0, 55.0)
    grid = crop_masks(torch.tensor(disc[None]), torch.tensor([box]), torch.tensor([0]), 28)
    back = paste_mask(grid[0].double().numpy(), box, (80, 60))
    assert (back & disc).sum() / (back | disc).sum() > 0.97


def test_paste__fills_a_box_and_no_more():
    full = np.ones((28, 28))
    mask = paste_mask(full, (3.0, 2.0, 10.0, 8.0), (12, 9))
    expected = np.zeros((9, 12), dtype=bool)
    expected[2:8, 3:10] = True
    np.testing.assert_array_equal(mask, expected)
    assert not paste_mask(full, (3.2, 2.0, 3.4, 8.0), (12, 9)).any()


def _targets(labels=((1,), (2, 1))):
    targets = []
    for number, own in enumerate(labels):
        boxes = _boxes(len(own), seed=number).round()
        masks = torch.zeros(len(own), 32, 32, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        targets.append(Target(boxes, torch.tensor(own, dtype=torch.int64), masks))
    return targets


def test_detector__rates_fall_from_its_heads_to_the_stem(detector, small):
    recipe, encoder = replace(small.optim, layer_decay=0.5), detector.pyramid.encoder
    groups = Training(detector, encoder, recipe, dict, epoch_steps=1).optimizer.param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for part in (detector.heads, detector.proposer, detector.pyramid.outputs):
        assert {scales[id(p)] for p in part.parameters()} == {1.0}
    assert {scales[id(p)] for p in encoder.blocks.parameters()} == {0.5}
    assert scales[id(encoder.patch_embed.proj.weight)] == 0.25


def test_detector__has_five_losses_with_gradients(detector):
    images = torch.randn(2, 3, 32, 32, generator=_draws())
    losses = detector.losses(images, _targets(), [[1, 2], [3, 4]])
    assert list(losses) == [
        "anchor_class_loss",
        "anchor_box_loss",
        "class_loss",
        "box_loss",
        "mask_loss",
    ]
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in detector.named_parameters() if p.grad is None]
    assert without == []
    assert all(loss.isfinite() for loss in losses.values())


def test_detector__learns_from_images_without_an_object(detector):
    """Every weight has a gradient even so: workers average theirs in one sum."""
    images = torch.randn(2, 3, 32, 32, generator=_draws())
    losses = detector.losses(images, _targets(((), ())), [[1, 2], [3, 4]])
    assert losses["mask_loss"] == losses["box_loss"] == losses["anchor_box_loss"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []


def test_detector__draws_follow_their_seeds(detector):
    images = torch.randn(2, 3, 32, 32, generator=_draws())

    def total(*seeds):
        losses = detector.losses(images, _targets(), [list(pair) for pair in seeds])
        return sum(loss.item() for loss in losses.values())

    assert total((1, 2), (3, 4)) == total((1, 2), (3, 4))
    assert total((1, 2), (3, 4)) != total((5, 2), (3, 4))
    assert total((1, 2), (3, 4)) != total((1, 2), (3, 9))


def test_detector__overfits_two_images(detector):
    images = torch.randn(2, 3, 32, 32, generator=_draws())
    targets = []
    for label, box in ((1, (4, 4, 20, 24)), (2, (10, 8, 28, 28))):
        mask = torch.zeros(1, 32, 32, dtype=torch.bool)
        mask[0, box[1] : box[3], box[0] : box[2]] = True
        images[label - 1, label, mask[0]] = 3.0
        targets.append(Target(torch.tensor([box]).float(), torch.tensor([label]), mask))
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    for step in range(120):
        losses = detector.losses(images, targets, [[step, 1], [step, 2]])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    detector.eval()
    with torch.no_grad():
        found = detector.detect(images, SIZES)
    for target, one in zip(targets, found, strict=True):
        assert one.labels[0] == target.labels[0]
        torch.testing.assert_close(one.boxes[0], target.boxes[0], rtol=0, atol=2.5)
        assert one.grids[0].mean() > 0.5


def test_detector__finds_nothing_beyond_what_an_image_covers(detector):
    detector.eval()
    detector.heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = detector.detect(torch.randn(1, 3, 32, 32, generator=_draws()), [(20, 30)])
    assert len(found.boxes)
    assert found.boxes[:, [0, 2]].max() <= 30
    assert found.boxes[:, [1, 3]].max() <= 20
    assert found.boxes.min() >= 0


def test_detector__keeps_boxes_in_float32_at_reduced_precision(encoder, small):
    torch.manual_seed(0)
    reduced = replace(small, optim=replace(small.optim, precision="bfloat16"))
    detector = Detector(load_encoder(encoder, image_size=32)[0], reduced, classes=2)
    images = torch.randn(2, 3, 32, 32, generator=_draws())
    losses = detector.losses(images, _targets(), [[1, 2], [3, 4]])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    detector.eval()
    detector.heads.score_thresh = 0.0
    with torch.no_grad():
        found = detector.detect(images, SIZES)
    assert {one.boxes.dtype for one in found} == {torch.float32}
