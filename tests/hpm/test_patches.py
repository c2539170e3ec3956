import torch

from hpm.patches import normalize_patches, patchify, unpatchify


def _images() -> torch.Tensor:
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_unpatchify__undoes_patchify() -> None:
    assert unpatchify(patchify(_images(), 8), 8).equal(_images())


def test_patchify__goes_in_reading_order_with_channels_last() -> None:
    patches = patchify(_images(), 8)
    assert patches.shape == (2, 9, 192)
    patch = _images()[1, :, 8:16, 16:24]
    assert patches[1, 5].equal(patch.permute(1, 2, 0).flatten())


def test_patchify__takes_images_that_are_not_square() -> None:
    assert patchify(_images()[:, :, :8], 8).shape == (2, 3, 192)


def test_normalize__gives_each_patch_mean_0_and_variance_1() -> None:
    patches = normalize_patches(patchify(5 * _images() + 3, 8))
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 9), rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 9), rtol=0, atol=1e-4)


def test_normalize__leaves_a_flat_patch_at_0() -> None:
    assert normalize_patches(torch.full((1, 1, 12), 7.0)).abs().max() == 0
