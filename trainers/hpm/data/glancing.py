"""A look at maps of classes before anything runs: at all of a small split, else at a sample."""

from hpm.data.decoding import spread
from hpm.data.maps import VOID, MapSource, MapSplit, require_known

__all__ = ["glance"]

_WHOLE = 500
_PAIRS = 64
_HEADERS = 20_000


def glance(source: MapSource, split: MapSplit) -> None:
    """Look at all images of a split of up to 500, and at their annotations.

    Of a larger one at 64, spread evenly over it, and beforehand at the sizes of up to 20,000, which
    files say at their beginning. Where rows are read with all of their group, as those of large
    Parquet files, both within a few groups: see the `reach` of what `source` reads.

    Raises:
        DataError: one of them is wrong, as `MapSource.pair` says; or all were seen, and all pixels
            are void.
    """
    if len(source) <= _WHOLE:
        pixels = sum(int((source.pair(index)[1] != VOID).sum()) for index in range(len(source)))
        require_known(pixels, split)
        return
    reach = source.raw.reach()
    for index in spread(reach, _HEADERS):
        source.compare(index)
    for index in spread(reach, _PAIRS):
        source.pair(index)
