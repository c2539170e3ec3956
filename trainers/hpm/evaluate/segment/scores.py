"""How often each class was taken for each, over all pixels of a split that are not void.

Letters: N images, C classes, B images of a batch, H, W height and width.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from hpm.data.maps import VOID, require_known
from hpm.evaluate.dealing import deal
from hpm.evaluate.segment.views import Whole, WholeViews

__all__ = ["BATCH", "Scores", "class_ious", "confusion", "mean_iou", "pixel_accuracy"]

BATCH = 16
"""Images of one batch."""

Guesses: TypeAlias = Callable[[Whole], Sequence[Tensor]]


def confusion(guesses_HW: Tensor, map_HW: Tensor, classes: int) -> Tensor:
    """Pixels [C, C] of each class (row) that were taken for each (column), int64."""
    known = map_HW != VOID
    pairs = map_HW[known].long() * classes + guesses_HW[known].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def class_ious(pixels_CC: Tensor) -> Tensor:
    """Intersection over union [C] in [0, 1]; not a number where a class is in neither."""
    hits = pixels_CC.diagonal().double()
    return hits / (pixels_CC.sum(0) + pixels_CC.sum(1) - pixels_CC.diagonal())


def mean_iou(pixels_CC: Tensor) -> float:
    """Percent (0 to 100), over the classes that are in the maps or the guesses."""
    return 100.0 * class_ious(pixels_CC).nanmean().item()


def pixel_accuracy(pixels_CC: Tensor) -> float:
    """Percent (0 to 100) of the pixels that were taken for their class."""
    return 100.0 * (pixels_CC.trace() / pixels_CC.sum()).item()


@final
class Scores:
    """The pixels of one split, of which those of the first `filled` images are counted."""

    def __init__(self, views: WholeViews) -> None:
        self.views = views
        self.classes = len(views.source.names)
        self.filled = 0
        self.pixels_CC = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        self.counts_N3C = torch.zeros(len(views.source), 3, self.classes, dtype=torch.int64)
        """Of each image: hits, guesses and true pixels of each class."""

    @property
    def steps(self) -> int:
        """Batches of the split."""
        return -(-len(self.views.source) // BATCH)

    @property
    def done(self) -> int:
        """Batches that are counted."""
        return -(-self.filled // BATCH)

    def fill(self, guesses: Guesses, *, loaders: int) -> Iterator[None]:
        """Count what is missing, and stop for a moment after each batch."""
        classes = self.classes
        made = deal(
            self.views,
            partial(self._count, guesses),
            nothing=(
                torch.zeros(0, classes, classes, dtype=torch.int64),
                torch.zeros(0, 3, classes, dtype=torch.int64),
            ),
            images=len(self.views.source),
            batch_size=BATCH,
            done=self.done,
            loaders=loaders,
        )
        for pixels_1CC, counts_B3C in made:
            self.pixels_CC += pixels_1CC[0]
            self.counts_N3C[self.filled : self.filled + len(counts_B3C)] = counts_B3C
            self.filled += len(counts_B3C)
            yield

    def _count(self, guesses: Guesses, batch: Whole) -> tuple[Tensor, Tensor]:
        """The pixels [1, C, C] of a batch, and the hits, guesses and true pixels of its images."""
        pairs = zip(guesses(batch), batch.maps, strict=True)
        of_BCC = torch.stack([confusion(guess, map_, self.classes) for guess, map_ in pairs])
        counts = of_BCC.diagonal(dim1=1, dim2=2), of_BCC.sum(1), of_BCC.sum(2)
        return of_BCC.sum(0, keepdim=True), torch.stack(counts, dim=1)

    def state(self) -> dict[str, Tensor]:
        """What is counted, for `restore`."""
        counts = self.counts_N3C[: self.filled].clone()
        return {"pixels": self.pixels_CC.clone(), "counts": counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Start from what an earlier `state` held."""
        self.filled = len(state["counts"])
        self.pixels_CC.copy_(state["pixels"])
        self.counts_N3C[: self.filled] = state["counts"]

    def metrics(self) -> dict[str, float]:
        """`miou` and `pixel_accuracy`.

        Raises:
            DataError: all pixels are void.
        """
        require_known(int(self.pixels_CC.sum()), "val")
        return {
            "miou": mean_iou(self.pixels_CC),
            "pixel_accuracy": pixel_accuracy(self.pixels_CC),
        }

    def write(self, folder: Path) -> None:
        """Write `confusion.npy`, `classes.json` and `predictions.npz`, which load without pickle.

        The first is int64 [C, C], a row for each true class; the second has each class's name and
        its `iou` in percent (null: it was in neither maps nor guesses). The third has the pixels
        `hits`, `guessed` and `true`, int64 [N, C], in validation order, so that two encoders can be
        compared over the images.
        """
        np.save(folder / "confusion.npy", self.pixels_CC.numpy())
        ious = (100.0 * class_ious(self.pixels_CC)).tolist()
        listed = [
            {"name": name, "iou": None if iou != iou else iou}
            for name, iou in zip(self.views.source.names, ious, strict=True)
        ]
        (folder / "classes.json").write_text(json.dumps(listed, indent=2) + "\n")
        hits, guessed, true = self.counts_N3C.unbind(1)
        np.savez_compressed(
            folder / "predictions.npz",
            hits=hits.numpy(),
            guessed=guessed.numpy(),
            true=true.numpy(),
        )
