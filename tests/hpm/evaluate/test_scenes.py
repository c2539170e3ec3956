"""Segmentation and detection on FashionScenes from beginning to end, as the preset sets them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablation.settings import flatten, settle
from hpm.config import Data, Encoder
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.evaluate.config import Random
from hpm.evaluate.references import run_random
from hpm.presets import PRESETS
from hpm.trainer import TRAINER

PRESET = PRESETS["vit_pico_32px"]


def _settings(stage: str, **changed: Any) -> Any:
    kind = TRAINER.stages()[stage].config_type
    config, faults = settle(kind, {**flatten(kind, PRESET[stage]), **changed})
    assert faults == []
    return config


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Leave of each split so many first scenes."""

    def begin(**counts: int) -> None:
        monkeypatch.setattr(FashionScenes, "__len__", lambda scenes: counts[scenes.split])

    return begin


@pytest.fixture
def scenes_encoder(drain: Any, stage: Any, tmp_path: Path) -> Path:
    """The export of the preset's encoder as initialised."""
    settings = PRESET["pretrain"]
    data, encoder = Data(**settings["data"]), Encoder(**settings["encoder"])
    drain(stage(run_random, Random(data=data, encoder=encoder), None)).result.export(tmp_path)
    return tmp_path


def test_segment__of_scenes_is_better_than_to_say_background(
    drain: Any, stage: Any, scenes_encoder: Path, begin: Callable[..., None]
) -> None:
    begin(train=640, val=160)
    run = TRAINER.stages()["segment"].load()
    metrics = drain(stage(run, _settings("segment"), scenes_encoder)).result.metrics
    scenes = FashionScenes.open("val")
    background = 1 - np.mean([scenes.mask(index) for index in range(len(scenes))])
    assert 100 * background / 11 < metrics["miou"] <= 100
    assert 0 <= metrics["pixel_accuracy"] <= 100


def test_detect__of_scenes_finds_where_garments_are(
    drain: Any, stage: Any, scenes_encoder: Path, begin: Callable[..., None]
) -> None:
    """Forty steps do not suffice to tell them apart."""
    pytest.importorskip("pycocotools", reason="needs the extra `detection`")
    begin(train=640, val=64)
    run = TRAINER.stages()["detect"].load()
    metrics = drain(stage(run, _settings("detect"), scenes_encoder)).result.metrics
    assert 0 <= metrics["mask_ap"] <= 100
    assert 0 <= metrics["box_ap"] <= metrics["box_ap50"] <= 100
    assert metrics["box_ap50"] > 3
