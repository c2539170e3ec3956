"""How two rankings of an image's patches agree. Letters: I images, N patches."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_under_curve", "rank_correlation"]


def rank_correlation(first_IN: NDArray[np.float32], second_IN: NDArray[np.float32]) -> float | None:
    """Spearman's, mean over images; patches of which a value is NaN are left out.

    None where no image has two patches that differ in both.
    """
    found = []
    for first, second in zip(first_IN, second_IN, strict=True):
        known = ~(np.isnan(first) | np.isnan(second))
        ranks = [_ranks(values[known]) for values in (first, second)]
        a, b = (rank - rank.mean() if rank.size else rank for rank in ranks)
        if scale := float(np.sqrt((a @ a) * (b @ b))):
            found.append(float(a @ b) / scale)
    return float(np.mean(found)) if found else None


def area_under_curve(score_IN: NDArray[np.float32], truth_IN: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, mean over images: how often a true patch has the higher score.

    None where no image has both kinds of patches; those whose score is NaN are left out.
    """
    found = []
    for score, truth in zip(score_IN, truth_IN, strict=True):
        known = ~np.isnan(score)
        ranks, true = _ranks(score[known]), truth[known]
        pairs = int(true.sum()) * int((~true).sum())
        if pairs:
            least = true.sum() * (true.sum() - 1) / 2
            found.append(float((ranks[true].sum() - least) / pairs))
    return float(np.mean(found)) if found else None


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """From 0; equal values share the mean of their ranks."""
    less = (values[:, None] > values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1)
    ranks: NDArray[np.float64] = less + (equal - 1) / 2
    return ranks
