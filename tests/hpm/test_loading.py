import io
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from hpm.config import Data
from hpm.data.errors import DataError
from hpm.data.loading import EvaluationViews, training_batches
from hpm.data.sampling import (
    Key,
    Shares,
    epoch_order,
    evaluation_keys,
    load,
)
from hpm.data.serving import steps_per_epoch
from hpm.data.source import open_source

DATA = Data(name="toy", image_size=8)
# PyTorch advises against more loader processes than processors; here their number is the question.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@dataclass(frozen=True)
class Toy:
    """A source of `num` random images, of which one may be unreadable."""

    num: int = 50
    broken: int | None = None
    classes: tuple[str, ...] = ("even", "odd")

    def __len__(self):
        return self.num

    def image(self, index):
        if index == self.broken:
            raise DataError(f"toy/{index}.jpg must be a readable image: it is not.")
        pixels = np.random.default_rng(index).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def label(self, index):
        return index % 2


def _draw(rng, step):
    return rng.random(4, dtype=np.float32)


def _training(source=Toy(), data=DATA, *, first=0, last=10, draw=_draw, **changes):
    shares = Shares(**{"batch_size": 12, **_some(changes, Shares._fields)})
    run = {"seed": 5, **_some(changes, ("seed", "loaders"))}
    return list(training_batches(source, data, range(first, last), shares=shares, draw=draw, **run))


def _some(changes, names):
    return {name: value for name, value in changes.items() if name in names}


def _assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for tensor, same in zip(batch, other, strict=True):
            assert tensor.dtype == same.dtype
            assert torch.equal(tensor, same)


def _joined(batches):
    return [torch.cat(tensors) for tensors in zip(*batches, strict=True)]


def test_epoch_order__is_a_permutation_of_its_own_in_each_epoch_and_seed():
    orders = [epoch_order(50, seed=s, epoch=e) for s in (0, 1) for e in (0, 1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    np.testing.assert_array_equal(orders[1], epoch_order(50, seed=0, epoch=1))


def test_steps_per_epoch__drops_what_is_left_over():
    assert steps_per_epoch(50, 12) == 4
    assert steps_per_epoch(12, 12) == 1


def test_training__refuses_a_set_smaller_than_a_batch_at_once():
    with pytest.raises(DataError, match="got batch_size=12 for 11 images; make the batch smaller"):
        training_batches(Toy(11), DATA, range(10), seed=5, shares=Shares(12))


def test_training__batches_have_shapes_and_types():
    for batch in _training():
        assert batch.images.shape == (12, 3, 8, 8)
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.labels, batch.indices % 2)
        assert batch.noise.shape == (12, 4)
        assert batch.noise.dtype == torch.float32
        assert 0 <= batch.noise.min() <= batch.noise.max() < 1


def test_training__takes_no_image_twice_in_an_epoch_and_new_views_in_the_next():
    batches = _training(last=8)
    epochs = [_joined(batches[:4]), _joined(batches[4:])]
    for epoch, (images, _, indices, noise, _) in enumerate(epochs):
        assert indices.tolist() == epoch_order(50, seed=5, epoch=epoch)[:48].tolist()
        assert len(torch.unique(images, dim=0)) == len(torch.unique(noise, dim=0)) == 48
    (images, _, indices, noise, _), (again, _, positions, redrawn, _) = epochs
    common = [(i, positions.tolist().index(k)) for i, k in enumerate(indices) if k in positions]
    assert len(common) >= 46
    assert not any(torch.equal(noise[i], redrawn[j]) for i, j in common)
    assert sum(torch.equal(images[i], again[j]) for i, j in common) < 3


def test_training__every_image_once_an_epoch_where_the_batch_divides_the_set():
    indices = _joined(_training(batch_size=10, last=5))[2]
    assert sorted(indices.tolist()) == list(range(50))


def test_training__another_seed_changes_order_views_and_noise():
    one, other = _training(last=4), _training(last=4, seed=6)
    assert not torch.equal(_joined(one)[2], _joined(other)[2])
    assert not torch.equal(_joined(one)[3].sort(0).values, _joined(other)[3].sort(0).values)


@pytest.mark.parametrize("loaders", [1, 4])
def test_training__is_the_same_with_loader_processes(loaders):
    _assert_same(_training(loaders=loaders), _training())


@pytest.mark.parametrize("loaders", [0, 1])
@pytest.mark.parametrize("first_step", [1, 4, 7])
def test_training__resumes_as_if_never_interrupted(first_step, loaders):
    _assert_same(_training(first=first_step, loaders=loaders), _training()[first_step:])


@pytest.mark.parametrize("world", [2, 3])
def test_training__ranks_share_a_batch(world):
    ranks = [_training(rank=rank, world=world) for rank in range(world)]
    for whole, *shares in zip(_training(), *ranks, strict=True):
        assert all(len(share.labels) == 12 // world for share in shares)
        for tensor, joined in zip(whole, _joined(shares), strict=True):
            assert torch.equal(tensor, joined)


def test_training__parts_follow_each_other():
    parts = _training(parts=3)
    assert all(len(part.labels) == 4 for part in parts)
    joined = [_joined(parts[start : start + 3]) for start in range(0, len(parts), 3)]
    _assert_same(joined, _training())


def test_training__ranks_share_each_part():
    ranks = [_training(parts=2, rank=rank, world=2) for rank in range(2)]
    for whole, *shares in zip(_training(parts=2), *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([share.images for share in shares]))


def test_training__views_and_noise_are_an_images_own_whatever_the_batch_size():
    by_index = [
        {int(k): (image, noise) for image, _, k, noise, _ in zip(*_joined(batches), strict=True)}
        for batches in (_training(last=4), _training(batch_size=6, last=8))
    ]
    for index, (image, noise) in by_index[0].items():
        assert torch.equal(image, by_index[1][index][0])
        assert torch.equal(noise, by_index[1][index][1])


def test_training__noise_can_be_left_out_without_changing_views():
    plain = _training(draw=None)
    assert plain[0].noise.shape == (12, 0)
    assert torch.equal(plain[0].images, _training()[0].images)


def test_training__leaves_pytorchs_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    _training(loaders=1, last=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("loaders", [0, 2])
def test_training__names_an_image_that_turns_out_unreadable(loaders):
    with pytest.raises(DataError) as caught:
        _training(Toy(broken=7), last=8, loaders=loaders)
    assert str(caught.value) == "toy/7.jpg must be a readable image: it is not."


@pytest.mark.parametrize("loaders", [0, 1, 4])
def test_evaluation__shows_every_image_once_in_order(loaders):
    views = EvaluationViews(Toy(), 8)
    batches = list(load(views, evaluation_keys(50, batch_size=16), loaders=loaders))
    assert [len(batch.labels) for batch in batches] == [16, 16, 16, 2]
    images, labels, indices, noise, _ = _joined(batches)
    assert indices.tolist() == list(range(50))
    assert labels.tolist() == [index % 2 for index in range(50)]
    assert images.shape == (50, 3, 8, 8)
    assert noise.shape == (50, 0)
    assert torch.equal(images, views(Key(0, 0, np.arange(50))).images)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_evaluation__deals_whole_batches_to_the_ranks(world):
    whole = [key.indices.tolist() for key in evaluation_keys(50, batch_size=16)]
    for rank in range(world):
        share = evaluation_keys(50, batch_size=16, rank=rank, world=world)
        assert [key.indices.tolist() for key in share] == whole[rank::world]


def test_fashion_scenes__load_without_change_in_native_size():
    source = open_source("fashion-scenes", "val", {})
    batch = EvaluationViews(source, 32)(Key(0, 0, np.arange(4)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (batch.images.permute(0, 2, 3, 1) * std + mean) * 255
    expected = torch.tensor(np.stack([np.asarray(source.image(index)) for index in range(4)]))
    assert torch.equal(pixels.round().to(torch.uint8), expected)


def test_errors__keep_their_sentence_when_pickled():
    buffer = io.BytesIO()
    pickle.dump(DataError("A sentence."), buffer)
    assert str(pickle.loads(buffer.getvalue())) == "A sentence."
