"""What a detector found in a split, gathered from all workers and kept as numbers and bytes.

Letters: R objects found, Z bytes of their masks.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from pycocotools import mask as runs
from torch import Tensor

from hpm.data.objects import ObjectImages, Truth
from hpm.distributed import this_worker
from hpm.evaluate.dealing import deal
from hpm.evaluate.detect.average_precision import average_precision
from hpm.evaluate.detect.batches import FittedBatch, FittedViews
from hpm.evaluate.detect.masks import paste_mask
from hpm.evaluate.detect.network import Detections, Detector

__all__ = ["BATCH", "Found", "Finds", "find", "write_results"]

BATCH = 8
"""Images of one pass. Part of the numbers: a matrix product's last bits depend on its shape."""


class Found(NamedTuple):
    """Objects found, in the order of their images."""

    rows: Tensor
    """[R, 7] float64: index of the image, class (from 1), score, left, top, width, height."""
    lengths: Tensor
    """[R] int64, bytes of each mask."""
    codes: Tensor
    """[Z] uint8: the masks, run-length encoded and compressed."""


_NONE = Found(
    torch.zeros(0, 7, dtype=torch.float64),
    torch.zeros(0, dtype=torch.int64),
    torch.zeros(0, dtype=torch.uint8),
)


@torch.no_grad()
def find(detector: Detector, batch: FittedBatch, device: torch.device) -> Found:
    """What the detector finds in whole images, in their own pixels, on the CPU."""
    detector.eval()
    shown = [(height, width) for width, height in batch.shown.tolist()]
    rows, codes = [], []
    images = detector.detect(batch.images.to(device), shown)
    for index, size, view, found in zip(
        batch.indices.tolist(), batch.sizes.tolist(), batch.shown.tolist(), images, strict=True
    ):
        ratios = np.tile(np.divide(size, view), 2)
        boxes = found.boxes.double().cpu().numpy() * ratios
        rows.append(_rows(index, found, boxes))
        for box, grid in zip(boxes.tolist(), found.grids.double().cpu().numpy(), strict=True):
            mask = paste_mask(grid, tuple(box), tuple(size))
            codes.append(runs.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])
    lengths = torch.tensor([len(code) for code in codes], dtype=torch.int64)
    together = np.frombuffer(b"".join(codes), dtype=np.uint8).copy()
    return Found(torch.cat(rows), lengths, torch.from_numpy(together))


def _rows(index: int, found: Detections, boxes: Any) -> Tensor:
    left_top, right_bottom = boxes[:, :2], boxes[:, 2:]
    held = (found.labels.cpu().numpy(), found.scores.double().cpu().numpy())
    indices = np.full(len(boxes), index)
    columns = [indices, *held, *left_top.T, *(right_bottom - left_top).T]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float64))


@final
class Finds:
    """What was found in a split, of whose batches the first `done` are searched."""

    def __init__(self, source: ObjectImages) -> None:
        self.source = source
        self.done = 0
        self.parts: list[Found] = []

    @property
    def steps(self) -> int:
        """Batches of the split."""
        return -(-len(self.source) // BATCH)

    def fill(self, detector: Detector, *, image_size: int, loaders: int) -> Iterator[None]:
        """Search what is missing, and stop for a moment after each batch."""
        made = deal(
            FittedViews(self.source, image_size),
            partial(find, detector, device=this_worker().device),
            nothing=_NONE,
            images=len(self.source),
            batch_size=BATCH,
            done=self.done,
            loaders=loaders,
        )
        for found in made:
            self.parts.append(Found(*found))
            self.done += 1
            yield

    def found(self) -> Found:
        """All that was found so far."""
        return Found(*(torch.cat(parts) for parts in zip(_NONE, *self.parts, strict=True)))

    def state(self) -> dict[str, Any]:
        """What is there, for `restore`."""
        return {"done": self.done, **self.found()._asdict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Start from what an earlier `state` held."""
        self.done = state["done"]
        self.parts = [Found(state["rows"], state["lengths"], state["codes"])]

    def metrics(self, truth: Truth) -> dict[str, float]:
        """COCO's average precisions: see `average_precision`."""
        return average_precision(truth, list(_results(self.found(), truth)))


def write_results(folder: Path, finds: Finds, truth: Truth) -> None:
    """Write `detections.json`, in COCO's format of results: boxes and masks, with scores."""
    results = list(_results(finds.found(), truth))
    for result in results:
        counts = result["segmentation"]["counts"]
        result["segmentation"]["counts"] = counts.decode("ascii")
    (folder / "detections.json").write_text(json.dumps(results) + "\n")


def _results(found: Found, truth: Truth) -> Iterator[dict[str, Any]]:
    codes = found.codes.numpy().tobytes()
    ends = found.lengths.cumsum(0).tolist()
    for row, end, length in zip(found.rows.tolist(), ends, found.lengths.tolist(), strict=True):
        image = truth.images[int(row[0])]
        yield {
            "image_id": image["id"],
            "category_id": truth.categories[int(row[1]) - 1]["id"],
            "bbox": row[3:],
            "score": row[2],
            "segmentation": {
                "size": [image["height"], image["width"]],
                "counts": codes[end - length : end],
            },
        }
