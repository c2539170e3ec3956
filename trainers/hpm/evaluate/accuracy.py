"""Guesses, how often they are right, and the file that keeps them.

Every evaluation here ends in guesses: for each validation image, in index order, up to five
classes, best first, and -1 where it has no further guess. Letters: N images, C classes, K guesses.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["GUESSES", "best_classes", "top_percent", "write_predictions"]

GUESSES = 5


def best_classes(scores_NC: Tensor) -> Tensor:
    """The up to five classes [N, K] of the highest scores, best first; of equals the lower one."""
    # A stable sort, because topk leaves the order of equal scores to the device.
    return scores_NC.sort(dim=1, descending=True, stable=True).indices[:, :GUESSES]


def top_percent(guesses_NK: Tensor, labels_N: Tensor, k: int) -> float:
    """Percent (0 to 100) of images whose label is among their first k guesses."""
    hits = (guesses_NK[:, :k] == labels_N[:, None]).any(dim=1)
    return 100.0 * hits.sum().item() / len(labels_N)


def write_predictions(folder: Path, guesses_NK: Tensor, labels_N: Tensor) -> None:
    """Write `predictions.npz`: int64 `guesses` [N, K] and `labels` [N], in validation order.

    Kept per image so that two encoders can be compared in pairs; loads without pickle.
    """
    np.savez_compressed(
        folder / "predictions.npz",
        guesses=guesses_NK.to(torch.int64).numpy(),
        labels=labels_N.to(torch.int64).numpy(),
    )
