"""Histograms of oriented gradients, by what must hold of them."""

import pytest
import torch

from hpm.hog import hog


def _image(size: int = 16) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _cells(image: torch.Tensor, bins: int) -> torch.Tensor:
    """[cell row, cell column, channel, bin] of an image of 2 x 2 cells that is one patch."""
    return hog(image, 16, bins=bins).reshape(2, 2, 3, bins)


def test_hog__has_a_histogram_of_unit_length_for_every_cell_and_colour() -> None:
    values = hog(_image(32), 16)
    assert values.shape == (1, 4, 108)
    torch.testing.assert_close(values.reshape(-1, 9).norm(dim=1), torch.ones(4 * 12))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_hog__of_a_rotated_image_is_the_rotated_histogram(turns: int) -> None:
    upright, turned = _image(), _image().rot90(turns, (2, 3))
    expected = _cells(upright, 8).rot90(turns, (0, 1)).roll(4 * turns, dims=3)
    torch.testing.assert_close(_cells(turned, 8), expected, rtol=1e-4, atol=1e-5)


def test_hog__of_a_slope_votes_for_its_direction_alone() -> None:
    right = torch.arange(16.0).expand(1, 3, 16, 16)
    # At the rim the mirrored image has no slope: what votes there has no size.
    assert _cells(right, 9).argmax(dim=3).unique().tolist() == [4]
    torch.testing.assert_close(_cells(right, 9)[..., 4], torch.ones(2, 2, 3))
    down = right.transpose(2, 3)
    assert _cells(down, 9).argmax(dim=3).unique().tolist() == [0]


def test_hog__does_not_depend_on_brightness_or_contrast() -> None:
    torch.testing.assert_close(hog(3 * _image() + 1, 8), hog(_image(), 8), rtol=1e-4, atol=1e-5)


def test_hog__of_a_patch_is_its_own() -> None:
    changed = _image(32)
    changed[:, :, 20:, 20:] = 0
    differs = (hog(changed, 8) - hog(_image(32), 8)).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.reshape(4, 4).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_hog__of_a_flat_image_is_nothing() -> None:
    assert hog(torch.ones(1, 3, 16, 16), 8).abs().max() == 0
