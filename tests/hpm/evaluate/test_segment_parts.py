"""The parts of segmentation: confusion, sizes, squares, heads, views."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, max_pool2d, pad

from hpm.config import Encoder
from hpm.data.maps import VOID, MapSource
from hpm.data.sampling import Key
from hpm.evaluate.segment.config import MapData, Segment, UperNetRecipe
from hpm.evaluate.segment.heads import ChannelDrop, Linear, Segmenter, UperNet, build_head
from hpm.evaluate.segment.resizing import halve, pool, resize
from hpm.evaluate.segment.scores import class_ious, confusion, mean_iou, pixel_accuracy
from hpm.evaluate.segment.sliding import corners, guess, score_images
from hpm.evaluate.segment.views import Views, WholeViews, distort, scaled_size
from hpm.evaluate.training import Training
from hpm.rules import ConfigError

SMALL = Segment(crop=16, stride=11, short_side=None, channels=8, drop_path=0.0)
LINEAR = replace(SMALL, head="linear", channels=None)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(*shape, classes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(classes, shape, generator=draw).to(torch.uint8)


def test_confusion__of_a_constant_guess_is_analytic():
    map_ = torch.tensor([0] * 6 + [1] * 3 + [2], dtype=torch.uint8)
    pixels = confusion(torch.zeros(10, dtype=torch.uint8), map_, classes=5)
    assert pixels[:, 0].tolist() == [6, 3, 1, 0, 0]
    # Class 0: 6 of 10; classes 1 and 2: 0; classes 3 and 4 are nowhere.
    assert mean_iou(pixels) == pytest.approx(100 * 0.6 / 3)
    assert pixel_accuracy(pixels) == pytest.approx(60.0)
    assert class_ious(pixels).isnan().tolist() == [False, False, False, True, True]


def test_confusion__of_perfect_guesses_is_100():
    map_ = maps(9, 7)
    pixels = confusion(map_, map_, classes=6)
    assert (mean_iou(pixels), pixel_accuracy(pixels)) == (100.0, 100.0)


def test_confusion__void_counts_nowhere():
    map_, guesses = maps(9, 7), maps(9, 7, seed=1)
    known = confusion(guesses[:5], map_[:5], classes=5)
    map_[5:] = VOID
    assert torch.equal(confusion(guesses, map_, classes=5), known)
    assert known.sum() == 35


def test_confusion__equals_a_slow_count():
    map_, guesses = maps(6, 5), maps(6, 5, seed=1)
    slow = torch.zeros(5, 5, dtype=torch.int64)
    for true, taken in zip(map_.flatten().tolist(), guesses.flatten().tolist(), strict=True):
        slow[true, taken] += 1
    assert torch.equal(confusion(guesses, map_, classes=5), slow)


@pytest.mark.parametrize("size", [(3, 5), (14, 10), (7, 5), (28, 13), (1, 1)])
def test_resize__is_pytorchs_bilinear(size):
    values = draws(2, 3, 7, 5)
    expected = interpolate(values, size=size, mode="bilinear")
    torch.testing.assert_close(resize(values, *size), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cells", [1, 2, 3, 6, 9])
def test_pool__is_pytorchs_adaptive_mean(cells):
    values = draws(2, 3, 7, 8)
    expected = adaptive_avg_pool2d(values, cells)
    torch.testing.assert_close(pool(values, cells), expected, rtol=1e-5, atol=1e-5)


def test_halve__is_the_largest_of_each_square():
    even, odd = draws(2, 3, 8, 6), draws(2, 3, 5, 7)
    assert torch.equal(halve(even), max_pool2d(even, 2))
    assert torch.equal(halve(odd), max_pool2d(odd, 2, ceil_mode=True))


@pytest.mark.parametrize(("length", "crop", "stride"), [(16, 16, 11), (17, 16, 11), (64, 16, 7)])
def test_corners__cover_a_side(length, crop, stride):
    found = corners(length, crop, stride)
    assert found[0] == 0
    assert found[-1] == length - crop
    assert all(0 < b - a <= stride for a, b in pairwise(found))
    assert len(found) == max(length - crop + stride - 1, 0) // stride + 1


class Counting(nn.Module):
    """Scores that are a square's own colours and their mean; `shown` holds the squares."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shown = []

    def forward(self, images):
        self.shown.append(images)
        return (self.weight * images + images.mean(dim=(1, 2, 3), keepdim=True),)


def slow_means(image, crop, stride):
    """[H, W], of each pixel: the mean, over the squares that it is in, of their means."""
    height, width = image.shape[1:]
    whole = pad(image, (0, max(0, crop - width), 0, max(0, crop - height)))
    total, count = torch.zeros(2, *whole.shape[1:])
    for y in corners(whole.shape[1], crop, stride):
        for x in corners(whole.shape[2], crop, stride):
            total[y : y + crop, x : x + crop] += whole[:, y : y + crop, x : x + crop].mean()
            count[y : y + crop, x : x + crop] += 1
    return (total / count)[:height, :width]


def test_score_images__cover_every_pixel_and_average_what_overlaps():
    images = [draws(3, 16, 16), draws(3, 20, 37, seed=1), draws(3, 9, 50, seed=2)]
    network = Counting()
    scores = list(score_images(network, images, crop=16, stride=11, reduced=False))
    for score, image in zip(scores, images, strict=True):
        # Squares agree on a pixel's colours, but not on their own means.
        torch.testing.assert_close(score, image + slow_means(image, crop=16, stride=11))
    assert len(torch.cat(network.shown)) == 1 + 2 * 3 + 1 * 5


def test_score_images__of_one_square_is_one_pass():
    network = Segmenter(
        small_encoder(), build_head(SMALL, width=16, classes=4, seed=0), (1, 1, 2, 2)
    )
    image = draws(3, 16, 16)
    (scores,) = score_images(network.eval(), [image], crop=16, stride=11, reduced=False)
    with torch.no_grad():
        whole = interpolate(network(image[None])[0], size=(16, 16), mode="bilinear")[0]
    torch.testing.assert_close(scores, whole)
    assert torch.equal(guess(scores, 16, 16), whole.argmax(0).to(torch.uint8))
    assert guess(scores, 33, 20).shape == (33, 20)


def test_score_images__images_beside_an_image_change_nothing():
    network = Segmenter(
        small_encoder(), build_head(SMALL, width=16, classes=4, seed=0), (1, 1, 2, 2)
    )
    images = [draws(3, 20, 30), draws(3, 16, 40, seed=1)]
    given = {"crop": 16, "stride": 11, "reduced": False}
    both = list(score_images(network.eval(), images, **given))
    alone = [next(iter(score_images(network, [image], **given))) for image in images]
    torch.testing.assert_close(both, alone)


def small_encoder():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )


def test_head__scores_at_its_own_resolution():
    features = [draws(2, 16, 4, 4, seed=seed) for seed in range(4)]
    linear = build_head(LINEAR, width=16, classes=4, seed=0)
    assert isinstance(linear, Linear)
    assert [scores.shape for scores in linear(features)] == [(2, 4, 4, 4)]
    upernet = build_head(replace(SMALL, dropout=0.0), width=16, classes=4, seed=0).train()
    assert [scores.shape for scores in upernet(features)] == [(2, 4, 16, 16), (2, 4, 4, 4)]
    assert len(upernet.eval()(features)) == 1
    alone = build_head(replace(SMALL, auxiliary=0.0, dropout=0.0), width=16, classes=4, seed=0)
    assert len(alone.train()(features)) == 1


def test_config__a_linear_head_sees_the_last_block_whatever_layers_are():
    deep, shallow = Encoder(), Encoder(depth=2)
    assert SMALL.blocks(deep) == (3, 6, 9, 12)
    assert replace(SMALL, layers=(4, 6, 8, 12)).blocks(deep) == (4, 6, 8, 12)
    for layers in (None, (1, 2, 3, 4)):
        linear = replace(LINEAR, layers=layers)
        assert (linear.blocks(deep), linear.blocks(shallow)) == ((12,), (2,))
        linear.require(shallow)


def test_head__follows_from_the_seed():
    first, same, other = (
        build_head(SMALL, width=16, classes=4, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not first["fuse.0.weight"].equal(other["fuse.0.weight"])


def test_head__an_image_knows_nothing_of_the_others():
    features = [draws(3, 16, 4, 4, seed=seed) for seed in range(4)]
    head = build_head(replace(SMALL, dropout=0.0), width=16, classes=4, seed=0).train()
    alone = [
        torch.cat(parts)
        for parts in zip(*(head([f[i : i + 1] for f in features]) for i in range(3)), strict=True)
    ]
    torch.testing.assert_close(list(head(features)), alone, rtol=1e-4, atol=1e-5)


def test_head__all_of_upernet_is_trained():
    head = build_head(replace(SMALL, dropout=0.0), width=16, classes=4, seed=0).train()
    assert isinstance(head, UperNet)
    sum(scores.square().sum() for scores in head([draws(2, 16, 4, 4)] * 4)).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_segmenter__rates_fall_from_its_head_to_the_stem(head):
    config = replace(SMALL, head=head, channels=None, optim=UperNetRecipe(layer_decay=0.5))
    encoder = small_encoder()
    network = Segmenter(encoder, build_head(config, width=16, classes=4, seed=0), (1, 1, 2, 2))
    groups = Training(network, encoder, config.optim, dict, epoch_steps=1).optimizer.param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert {scales[id(p)] for p in network.head.parameters()} == {1.0}
    for part, scale in ((encoder.blocks[1], 0.5), (encoder.blocks[0], 0.25)):
        assert {scales[id(p)] for p in part.parameters()} == {scale}
    assert scales[id(encoder.patch_embed.proj.weight)] == scales[id(encoder.cls_token)] == 0.125


def test_segmenter__takes_the_tokens_after_each_layer():
    encoder = small_encoder().eval()
    heads = []
    network = Segmenter(encoder, heads.append, (1, 1, 2, 2))
    images = draws(2, 3, 16, 16)
    with torch.no_grad():
        network(images)
        tokens = encoder._pos_embed(encoder.patch_embed(images))
        tokens = encoder.blocks[0](tokens)
    assert heads[0][0] is heads[0][1]
    torch.testing.assert_close(heads[0][1].flatten(2).transpose(1, 2), tokens[:, 1:])
    assert not torch.equal(heads[0][2], heads[0][1])


def test_segmenter__runs_no_block_above_its_layers():
    encoder = small_encoder()
    encoder.blocks[1].register_forward_hook(lambda *_: pytest.fail("nothing needs it"))
    Segmenter(encoder, [].append, (1, 1, 1, 1))(draws(1, 3, 16, 16))


def test_channel_drop__leaves_channels_out_by_their_coins():
    drop = ChannelDrop(0.25, 2).train()
    drop.coins_BD = torch.tensor([[0.1, 0.25], [0.9, 0.0]])
    dropped = drop(torch.ones(2, 2, 3, 3))[:, :, 0, 0]
    torch.testing.assert_close(dropped, torch.tensor([[0.0, 4 / 3], [4 / 3, 0.0]]))
    assert drop.eval()(torch.ones(2, 2, 3, 3)).equal(torch.ones(2, 2, 3, 3))


class Noise:
    """Images of 40 x 24 whose colours say their classes, 0 to 3."""

    def __len__(self):
        return 5

    def image(self, index):
        return Image.fromarray(np.repeat(self.annotation(index)[..., None] * 60, 3, axis=2))

    def annotation(self, index):
        blocks = np.random.default_rng(index).integers(0, 4, (3, 5), dtype=np.uint8)
        return blocks.repeat(8, axis=0).repeat(8, axis=1)


NOISE = MapSource(raw=Noise(), names=("a", "b", "c", "d"), void=None)


def views(**changes):
    config = replace(SMALL, scale=(1.0, 1.0), distort=False, crop_share=1.0, **changes)
    return Views(source=NOISE, config=config, coins=7, seed=3)


def key(*indices, epoch=0):
    return Key(0, epoch, np.array(indices, dtype=np.int64))


def test_views__image_and_map_are_cut_alike():
    part = views()(key(*range(5)))
    assert (part.images.shape, part.maps.shape) == ((5, 3, 16, 16), (5, 16, 16))
    # At scale 1 the class can be read off the colour.
    colours = part.images[:, 0] * 0.229 + 0.485
    assert torch.equal((colours * 255 / 60).round().to(torch.uint8), part.maps)


def test_views__beyond_the_image_is_void():
    part = views(crop=32, stride=32)(key(0))
    assert (part.maps[0, :24] != VOID).all()
    assert (part.maps[0, 24:] == VOID).all()
    assert not part.images[0, :, 24:].any()


def test_views__follow_from_seed_epoch_and_image():
    ours = views(flip=True)
    both, alone = ours(key(4, 1)), ours(key(1))
    for together, single in zip(both, alone, strict=True):
        assert torch.equal(together[1:], single)
    others = [ours(key(1, epoch=epoch)).maps for epoch in range(1, 5)]
    assert any(not torch.equal(alone.maps, other) for other in others)
    assert alone.coins.shape == (1, 7)


def test_views__without_flip_none_is_mirrored():
    ours = views(crop=40, stride=40, flip=False)
    for index in range(5):
        map_ = ours(key(index)).maps[0, :24]
        assert map_.tolist() == NOISE.raw.annotation(index).tolist()
    mirrored = views(crop=40, stride=40)
    found = [mirrored(key(i)).maps[0, :24].tolist() == NOISE.pair(i)[1].tolist() for i in range(5)]
    assert set(found) == {True, False}


def test_views__scale_by_the_shorter_side():
    image = Image.new("RGB", (40, 20))
    assert scaled_size(image, None, 1.5) == (60, 30)
    assert scaled_size(image, 10, 1.0) == (20, 10)
    # The longer side is at most four times the shorter one's aim.
    assert scaled_size(Image.new("RGB", (160, 10)), 10, 1.0) == (40, 3)


def test_views__avoid_crops_of_one_class():
    ours = views(crop=8, stride=8)
    mixed = replace(ours, config=replace(ours.config, crop_share=0.75))

    def plain(made):
        parts = [made(key(*range(5), epoch=epoch)) for epoch in range(20)]
        return sum(len(m.unique()) == 1 for part in parts for m in part.maps)

    assert plain(mixed) < plain(ours)


def test_views__distortion_leaves_the_map_alone():
    ours = views()
    distorted = replace(ours, config=replace(ours.config, distort=True))
    plain, changed = ours(key(*range(5))), distorted(key(*range(5)))
    assert torch.equal(plain.maps, changed.maps)
    assert not torch.equal(plain.images, changed.images)


def test_distort__sometimes_leaves_all_as_it_is_and_never_turns_grey_to_colour():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    found = [distort(pixels, np.random.default_rng(seed)) for seed in range(200)]
    assert any(np.array_equal(view, pixels) for view in found)
    assert len({int(view[0, 0, 0]) for view in found}) > 20
    assert all((view == view[..., :1]).all() for view in found)


def test_whole_views__have_the_annotations_own_size():
    whole = WholeViews(source=NOISE, short_side=12)(key(0, 1))
    assert [tuple(image.shape) for image in whole.images] == [(3, 12, 20)] * 2
    assert [tuple(map_.shape) for map_ in whole.maps] == [(24, 40)] * 2


def test_config__is_the_official_links():
    recipe = UperNetRecipe()
    steps = 20_210 // recipe.batch_size
    assert abs(recipe.epochs * steps - 160_000) < steps
    assert recipe.warmup_epochs * steps == pytest.approx(1500, rel=0.01)
    assert recipe.base_lr * recipe.batch_size / 256 == pytest.approx(1e-4)
    assert (recipe.weight_decay, recipe.layer_decay, recipe.decay) == (0.05, 0.65, "linear")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen": True, "drop_path": 0.1}, "drop_path must be 0 where the encoder is frozen"),
        ({"stride": 17}, r"stride must be in \[1, crop=16\], got 17"),
        ({"layers": (2, 1, 3, 4)}, "layers must be four numbers from 1 on in ascending order"),
        ({"layers": (1, 2, 3)}, "layers must be four numbers"),
        ({"scale": (2.0, 0.5)}, r"scale must be \[least, most\], both above 0, got \[2, 0.5\]"),
        ({"crop_share": 0.0}, r"crop_share must be in \(0, 1\], got 0"),
        ({"channels": 0}, "channels must be at least 1 or null"),
        ({"head": "linear"}, "channels must be null where head is linear, got 8"),
        ({"short_side": 0}, "short_side must be at least 1 or null"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"auxiliary": -1.0}, "auxiliary must be 0 or more"),
    ],
)
def test_config__says_what_must_hold(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"void": 300}, r"void must be in \[0, 255\] or null, got 300"),
        ({"classes": 1}, r"classes must be in \[2, 255\] or null, got 1"),
        ({"void": 3, "classes": 5}, "void must be 0 or at least classes=5, got 3"),
    ],
)
def test_map_data__says_what_must_hold(changes, said):
    with pytest.raises(ConfigError, match=said):
        MapData(name="x", **changes)
