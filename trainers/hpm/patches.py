"""Images as rows of patches, and back.

Letters: B images, C channels, H W height and width, N patches, P values of one patch, p * p * C.
"""

from torch import Tensor

__all__ = ["normalize_patches", "patchify", "unpatchify"]


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Patches [B, N, P] in reading order; within a patch the channel varies fastest."""
    batch, channels, height, width = images_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    tiles = images_BCHW.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches_BNP: Tensor, patch_size: int) -> Tensor:
    """Square images [B, C, H, W]: the inverse of `patchify`."""
    batch, count, values = patches_BNP.shape
    side, channels = round(count**0.5), values // patch_size**2
    tiles = patches_BNP.reshape(batch, side, side, patch_size, patch_size, channels)
    images = tiles.permute(0, 5, 1, 3, 2, 4)
    return images.reshape(batch, channels, side * patch_size, side * patch_size)


def normalize_patches(patches_BNP: Tensor) -> Tensor:
    """Each patch shifted and scaled by its own mean and (unbiased) variance, as MAE does."""
    mean = patches_BNP.mean(dim=-1, keepdim=True)
    variance = patches_BNP.var(dim=-1, keepdim=True)
    return (patches_BNP - mean) / (variance + 1e-6).sqrt()
