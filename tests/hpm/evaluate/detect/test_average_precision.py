"""COCO's average precision of detections that are known to be good or bad."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as runs

from hpm.data.object_sources import open_objects
from hpm.data.objects import Truth
from hpm.evaluate.detect.average_precision import average_precision


@pytest.fixture
def truth(blocks) -> Truth:
    return open_objects("blocks", blocks.data)[1].truth()


def _perfect(truth: Truth) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {**{name: annotation[name] for name in names}, "score": 0.9}
        for annotation in truth.annotations
        if not annotation["iscrowd"]
    ]


def _block(box: list[float]) -> dict[str, Any]:
    x, y, w, h = box
    return runs.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 24, 32)[0]


def test_average_precision__of_the_truth_is_100(truth: Truth) -> None:
    found = average_precision(truth, _perfect(truth))
    assert found == pytest.approx({"box_ap": 100.0, "mask_ap": 100.0, "box_ap50": 100.0})


def test_average_precision__of_nothing_is_0(truth: Truth) -> None:
    assert average_precision(truth, []) == {"box_ap": 0.0, "mask_ap": 0.0, "box_ap50": 0.0}


def test_average_precision__falls_as_boxes_move_away(truth: Truth) -> None:
    def moved(share: float) -> dict[str, float]:
        results = _perfect(truth)
        for result in results:
            x, y, w, h = result["bbox"]
            result["bbox"] = [x + share * w, y, w, h]
        return average_precision(truth, results)

    # Shifted by a tenth the IoU is 9/11, above six or seven of the ten thresholds; by half, 1/3.
    assert moved(0.1)["box_ap"] == pytest.approx(70.0)
    assert moved(0.1)["box_ap50"] == pytest.approx(100.0)
    assert moved(0.5)["box_ap"] == 0.0
    assert moved(0.5)["mask_ap"] == pytest.approx(100.0)


def test_average_precision__counts_boxes_and_masks_apart(truth: Truth) -> None:
    results = _perfect(truth)
    for result in results:
        x, y, w, h = result["bbox"]
        result["segmentation"] = _block([x, y, w / 2, h / 2])
    found = average_precision(truth, results)
    assert found["box_ap"] == pytest.approx(100.0)
    assert found["mask_ap"] == 0.0


def test_average_precision__wants_the_right_class(truth: Truth) -> None:
    results = _perfect(truth)
    for result in results:
        result["category_id"] = 10 - result["category_id"]
    assert average_precision(truth, results)["box_ap"] == 0.0


def test_average_precision__a_crowd_counts_neither_way(truth: Truth) -> None:
    first = truth.annotations[0]
    corner = [0.0, 20.0, 4.0, 4.0]
    given = {**first, "bbox": corner, "segmentation": _block(corner), "area": 16.0}
    extra = {**_perfect(truth)[0], "bbox": corner, "segmentation": _block(corner), "score": 0.99}
    single = {**given, "id": 999, "iscrowd": 0}
    crowd = {**given, "id": 999, "iscrowd": 1}
    perfect = _perfect(truth)

    def ap(more: list[dict[str, Any]], results: list[dict[str, Any]]) -> float:
        held = Truth(truth.images, truth.categories, [*truth.annotations, *more])
        return average_precision(held, results)["box_ap"]

    assert ap([crowd], perfect) == pytest.approx(100.0)
    assert ap([crowd], [*perfect, extra]) == pytest.approx(100.0)
    assert ap([single], perfect) < 100.0
    assert ap([], [*perfect, extra]) < 100.0


def test_average_precision__leaves_the_truth_as_it_was(truth: Truth) -> None:
    before = [dict(annotation) for annotation in truth.annotations]
    average_precision(truth, _perfect(truth))
    assert truth.annotations == before
    assert np.isfinite(sum(annotation["area"] for annotation in before))
