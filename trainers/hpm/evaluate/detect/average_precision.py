"""COCO's average precision, by pycocotools."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hpm.data.objects import Truth

__all__ = ["average_precision"]


def average_precision(truth: Truth, results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`box_ap` and `mask_ap` (COCO's AP at IoU 0.50 to 0.95) and `box_ap50`, in percent.

    `results` are in COCO's format of results, with boxes and masks. Crowds count neither way.
    """
    # pycocotools tells of its progress on stdout.
    with redirect_stdout(io.StringIO()):
        known = _index(truth, [dict(annotation) for annotation in truth.annotations])
        found = _index(
            truth,
            [
                {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3]}
                for number, result in enumerate(results, start=1)
            ],
        )
        boxes, masks = (_precision(known, found, kind) for kind in ("bbox", "segm"))
    return {"box_ap": _mean(boxes), "mask_ap": _mean(masks), "box_ap50": _mean(boxes[0])}


def _index(truth: Truth, annotations: list[dict[str, Any]]) -> Any:
    held = COCO()
    held.dataset = {
        "images": truth.images,
        "categories": truth.categories,
        "annotations": annotations,
    }
    held.createIndex()
    return held


def _precision(known: Any, found: Any, kind: str) -> NDArray[np.float64]:
    """[10 thresholds, 101 recalls, categories], -1 for categories without an object."""
    work = COCOeval(known, found, kind)
    # Of all sizes; the others would cost as much again, and nobody asks for them.
    work.params.areaRng, work.params.areaRngLbl = [[0, 1e10]], ["all"]
    work.evaluate()
    work.accumulate()
    precision: NDArray[np.float64] = work.eval["precision"][:, :, :, 0, -1]
    return precision


def _mean(precision: NDArray[np.float64]) -> float:
    return 100.0 * float(precision[precision > -1].mean())
