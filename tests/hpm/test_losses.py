import math
from typing import Literal

import pytest
import torch

from hpm.losses import absolute_loss, feature_loss, reconstruction_loss, relative_loss


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_loss__is_a_mean_over_each_patch() -> None:
    prediction = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    assert reconstruction_loss(prediction, torch.zeros(1, 2, 2)).tolist() == [[5.0, 0.0]]


@pytest.mark.parametrize(("form", "loss"), [("mse", 5.0), ("l1", 2.0), ("smooth-l1", 1.5)])
def test_reconstruction_loss__has_three_forms(
    form: Literal["mse", "l1", "smooth-l1"], loss: float
) -> None:
    prediction = torch.tensor([[[1.0, 3.0]]])
    assert reconstruction_loss(prediction, torch.zeros(1, 1, 2), form).tolist() == [[loss]]


def test_feature_loss__ignores_lengths() -> None:
    prediction, target = _draw(2, 3, 8), _draw(2, 3, 8, seed=1)
    torch.testing.assert_close(
        feature_loss(5 * prediction, target), feature_loss(prediction, 0.1 * target)
    )
    assert feature_loss(prediction, prediction).abs().max() < 1e-12


def test_relative_loss__uses_only_the_order_of_the_losses() -> None:
    predicted, loss = _draw(4, 12), _draw(4, 12, seed=1)
    torch.testing.assert_close(
        relative_loss(predicted, loss), relative_loss(predicted, loss.exp() * 3 + 7)
    )


def test_relative_loss__does_not_see_a_shift_of_an_images_predictions() -> None:
    predicted, loss = _draw(4, 12), _draw(4, 12, seed=1)
    torch.testing.assert_close(
        relative_loss(predicted, loss), relative_loss(predicted + _draw(4, 1, seed=2), loss)
    )


def test_relative_loss__is_zero_with_zero_gradient_on_ties() -> None:
    predicted = _draw(2, 6).requires_grad_()
    loss = relative_loss(predicted, torch.ones(2, 6))
    loss.backward()
    assert loss.item() == 0.0
    assert predicted.grad is not None
    assert predicted.grad.abs().max() == 0


def test_relative_loss__leaves_out_tied_pairs_only() -> None:
    predicted = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
    loss = relative_loss(predicted, torch.tensor([[1.0, 1.0, 3.0]]))
    expected = -math.log(1 / (1 + math.exp(-2.0)) + 1e-6)
    assert math.isclose(loss.item(), expected, rel_tol=1e-5)


def test_relative_loss__pools_pairs_over_the_batch() -> None:
    # The first image has one pair, the second three.
    predicted, loss = torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    predicted[1] = torch.tensor([0.0, 2.0, 4.0])
    alone = relative_loss(predicted[1:], loss[1:])
    torch.testing.assert_close(relative_loss(predicted, loss), alone)


def test_relative_loss__caps_a_pair_at_the_official_value() -> None:
    loss = relative_loss(torch.tensor([[0.0, 1e4]]), torch.tensor([[1.0, 0.0]]))
    assert math.isclose(loss.item(), -math.log(1e-6), rel_tol=1e-5)


def test_relative_loss__falls_with_the_right_order() -> None:
    loss = _draw(2, 9)
    assert relative_loss(loss, loss) < math.log(2) < relative_loss(-loss, loss)


def test_absolute_loss__does_not_see_the_scale_of_an_images_losses() -> None:
    predicted, loss = _draw(3, 12), _draw(3, 12, seed=1)
    scaled = loss * torch.tensor([[1.0], [10.0], [0.5]]) + 4
    torch.testing.assert_close(
        absolute_loss(predicted, loss), absolute_loss(predicted, scaled), rtol=1e-4, atol=1e-5
    )


def test_absolute_loss__vanishes_at_the_standardised_losses() -> None:
    loss = _draw(3, 12)
    standard = (loss - loss.mean(1, keepdim=True)) / loss.std(1, keepdim=True)
    assert absolute_loss(standard, loss) < 1e-10
