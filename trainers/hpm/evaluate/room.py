"""How much memory the features of a split may take: asked when a study is planned, and again later.

Nothing here loads torch.
"""

from hpm.data.errors import DataError

__all__ = ["require_room"]

_ROOM = 16 << 30
"""Bytes that the features of a split may need: thrice what ImageNet's take at a width of 1024."""


def require_room(images: int, width: int) -> None:
    """See that `width` values of each of so many images, in float32, fit into memory.

    Raises:
        DataError: they need more than 16 GiB.
    """
    needed = 4 * images * width
    if needed > _ROOM:
        raise DataError(
            f"Features must fit into {_ROOM / 2**30:.0f} GiB, but {width} values of each of "
            f"{images} images need {needed / 2**30:.0f} GiB. "
            "Give a pixels reference a smaller data.image_size, or evaluate on fewer images."
        )
