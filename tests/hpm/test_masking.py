import pytest
import torch

from hpm.masking import draw_mask, select_hard, split_patches


def _noise(images: int = 8, patches: int = 196) -> torch.Tensor:
    return torch.rand(images, patches, generator=torch.Generator().manual_seed(0))


def _predicted(images: int = 8, patches: int = 196) -> torch.Tensor:
    return torch.randn(images, patches, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_hard", [0, 1, 73, 147])
def test_mask__hides_exactly_so_many(num_hard: int) -> None:
    mask = draw_mask(_noise(), _predicted(), num_masked=147, num_hard=num_hard)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [147] * 8


@pytest.mark.parametrize("prefer", ["hard", "easy"])
def test_mask__hides_all_of_the_preferred_share(prefer: str) -> None:
    predicted = _predicted()
    mask = draw_mask(_noise(), predicted, num_masked=147, num_hard=73, prefer=prefer)
    preferred = predicted.topk(73, dim=1, largest=prefer == "hard").indices
    assert mask.gather(1, preferred).all()
    assert not mask.equal(draw_mask(_noise(), None, num_masked=147, num_hard=0))


def test_mask__is_random_beside_the_hard_patches() -> None:
    noise, predicted = _noise(4000, 8), torch.arange(8.0).expand(4000, 8)
    mask = draw_mask(noise, predicted, num_masked=6, num_hard=3)
    hidden = mask.float().mean(dim=0)
    assert hidden[5:].tolist() == [1.0, 1.0, 1.0]
    # 3 of the 5 other patches: 0.6 each, with a standard deviation of 0.008.
    torch.testing.assert_close(hidden[:5], torch.full((5,), 0.6), rtol=0, atol=0.04)


def test_mask__without_hard_patches_ignores_the_predictions() -> None:
    assert draw_mask(_noise(), _predicted(), num_masked=147, num_hard=0).equal(
        draw_mask(_noise(), None, num_masked=147, num_hard=0)
    )


def test_mask__of_an_image_does_not_depend_on_its_batch() -> None:
    noise, predicted = _noise(), _predicted()
    mask = draw_mask(noise, predicted, num_masked=147, num_hard=20)
    alone = draw_mask(noise[3:4], predicted[3:4], num_masked=147, num_hard=20)
    assert alone.equal(mask[3:4])


def test_mask__fully_hard_is_the_top_of_the_predictions() -> None:
    predicted = _predicted()
    mask = draw_mask(_noise(), predicted, num_masked=147, num_hard=147)
    assert mask.equal(select_hard(predicted, 147))


@pytest.mark.parametrize("prefer", ["hard", "easy"])
def test_select_hard__breaks_ties_by_reading_order(prefer: str) -> None:
    hard = select_hard(torch.zeros(1, 5), 2, prefer=prefer)
    assert hard.tolist() == [[True, True, False, False, False]]


def test_select_hard__tells_hard_from_random_hidden_patches() -> None:
    predicted = _predicted()
    mask = draw_mask(_noise(), predicted, num_masked=147, num_hard=50)
    hard = select_hard(predicted, 50)
    assert (mask & hard).sum(dim=1).tolist() == [50] * 8
    assert (mask & ~hard).sum(dim=1).tolist() == [97] * 8


def test_split__lists_visible_and_hidden_in_reading_order() -> None:
    visible, hidden = split_patches(torch.tensor([[True, False, True, True, False]]), 3)
    assert visible.tolist() == [[1, 4]]
    assert hidden.tolist() == [[0, 2, 3]]
