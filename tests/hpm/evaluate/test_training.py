"""What fine-tuning, segmentation and detection share: one network in supervised training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy

from hpm.evaluate.drop_path import DropPath, hand_coins, replace_drop_paths
from hpm.evaluate.recipe import Recipe
from hpm.evaluate.training import Training
from hpm.progress import NonFiniteLossError
from hpm.rules import ConfigError
from hpm.weights import load_encoder

RECIPE = Recipe(epochs=4, warmup_epochs=1, batch_size=8, base_lr=0.01, precision="float32")


def _batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 16, 16, generator=draws), torch.randint(6, (8,), generator=draws))
        for _ in range(count)
    ]


@pytest.fixture
def start(encoder: Path) -> Callable[..., Training[tuple[Tensor, Tensor]]]:
    """A classifier on the encoder, in training."""

    def begin(recipe: Recipe = RECIPE) -> Training[tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        network, _ = load_encoder(encoder, classes=6)
        network.head.reset_parameters()

        def loss(part: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return {"loss": cross_entropy(network(part[0]), part[1])}

        return Training(network, network, recipe, loss, epoch_steps=3)

    return begin


def test_training__learns_and_counts(start) -> None:
    training, (batch, *_) = start(replace(RECIPE, base_lr=0.1)), _batches(1)
    losses = [training.update([batch])["loss"] for _ in range(training.total)]
    assert (training.done, training.total) == (12, 12)
    assert losses[-1] < 0.8 * losses[0]


def test_training__goes_on_as_if_never_stopped(start) -> None:
    recipe, batches = replace(RECIPE, ema=0.9), _batches(6)
    straight = start(recipe)
    for batch in batches:
        straight.update([batch])
    first = start(recipe)
    for batch in batches[:3]:
        first.update([batch])
    second = start(recipe)
    second.restore(first.state())
    for batch in batches[3:]:
        second.update([batch])
    assert second.trace() == straight.trace()
    assert set(straight.trace()) == {"weights", "average", "optimizer"}


def test_training__takes_a_batch_in_parts_as_in_one(start) -> None:
    whole, parts = start(), start()
    for images, labels in _batches(3):
        whole.update([(images, labels)])
        parts.update([(images[:4], labels[:4]), (images[4:], labels[4:])])
    ours, theirs = whole.network.state_dict(), parts.network.state_dict()
    # The gradient of a key's bias is 0 but for rounding, which Adam brings to the size of a step.
    del ours["blocks.0.attn.qkv.bias"], theirs["blocks.0.attn.qkv.bias"]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_training__adds_up_the_terms_of_its_loss(start) -> None:
    whole, named = start(), start()
    one = named.loss
    named.loss = lambda part: {"near": 0.25 * one(part)["loss"], "far": 0.75 * one(part)["loss"]}
    for images, labels in _batches(3):
        parts = [(images[:4], labels[:4]), (images[4:], labels[4:])]
        metrics, expected = named.update(parts), whole.update(parts)
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert metrics["near"] == pytest.approx(metrics["loss"] / 4, rel=1e-5)
        assert set(metrics) == {*expected, "near", "far"}


def test_training__rates_fall_by_layer(start) -> None:
    training = start(replace(RECIPE, layer_decay=0.5))
    scales = {id(p): g["lr_scale"] for g in training.optimizer.param_groups for p in g["params"]}
    network = training.network
    assert scales[id(network.head.weight)] == 1.0
    assert scales[id(network.blocks[0].attn.qkv.weight)] == 0.5
    assert scales[id(network.patch_embed.proj.weight)] == 0.25
    assert len(scales) == len(list(network.parameters()))


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_training__rate_warms_up_and_falls_to_the_least(start, decay: str) -> None:
    training = start(replace(RECIPE, decay=decay, min_lr=1e-5))
    rates = [training.update([batch])["lr"] for batch in _batches(12)]
    peak = RECIPE.base_lr * 8 / 256
    assert rates[0] == 0.0
    assert rates[3] == pytest.approx(peak)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 1e-5 < rates[-1] < peak / 4


def test_training__rate_falls_in_steps(start) -> None:
    training = start(replace(RECIPE, epochs=9, warmup_epochs=0, decay="steps"))
    rates = [training.update([batch])["lr"] for batch in _batches(27)]
    assert rates[23] == pytest.approx(rates[0])
    assert rates[24] == pytest.approx(rates[0] / 10)
    assert rates[26] == pytest.approx(rates[0] / 100)


def test_training__does_not_move_what_is_frozen(start) -> None:
    frozen = start()
    frozen.network.blocks.requires_grad_(False)
    training = Training(
        frozen.network, frozen.network, replace(RECIPE, warmup_epochs=0), frozen.loss, epoch_steps=3
    )
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    training.update(_batches(1))
    after = training.network.state_dict()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert "head.weight" in moved
    assert not any(name.startswith("blocks") for name in moved)


def test_training__average_trails_the_weights(start) -> None:
    training = start(replace(RECIPE, ema=0.75, warmup_epochs=0))
    before = training.network.head.weight.detach().clone()
    training.update(_batches(1))
    after = training.network.head.weight
    average = training.evaluated.head.weight
    torch.testing.assert_close(average, 0.75 * before + 0.25 * after)


def test_training__says_that_a_loss_is_not_finite(start) -> None:
    training = start()
    images, labels = _batches(1)[0]
    with pytest.raises(NonFiniteLossError, match=r"stay finite, got nan at step 1 \(.*base_lr"):
        training.update([(images * torch.nan, labels)])


def test_recipe__names_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(epochs=1, warmup_epochs=2, layer_decay=0, ema=1.0, accumulate=5)
    assert [path for path, _ in caught.value.problems] == [
        "batch_size",
        "warmup_epochs",
        "layer_decay",
        "ema",
    ]


def test_drop_path__leaves_branches_out_by_their_coins() -> None:
    path = DropPath(0.25).train()
    hand_coins([path], torch.tensor([[0.1, 0.0], [0.25, 0.0], [0.9, 0.0]]))
    dropped = path(torch.ones(3, 2, 2))
    torch.testing.assert_close(dropped[:, 0, 0], torch.tensor([0.0, 4 / 3, 4 / 3]))
    assert path.eval()(torch.ones(3, 2, 2)).equal(torch.ones(3, 2, 2))


def test_drop_path__takes_the_place_of_timms() -> None:
    network = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, drop_path_rate=0.4
    )
    paths = replace_drop_paths(network.train())
    assert [path.rate for path in paths] == pytest.approx([0.2, 0.2, 0.4, 0.4])
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    hand_coins(paths, torch.ones(2, 6))
    kept = network(images)
    hand_coins(paths, torch.tensor([[1.0] * 4, [0.0] * 4]))
    some = network(images)
    assert some[0].equal(kept[0])
    assert not some[1].equal(kept[1])
