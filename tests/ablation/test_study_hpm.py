"""Studies of the method itself: the installed trainer, found by its entry point."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ablation.problems import StudyError
from ablation.protocol import Place, Trainer
from ablation.schema import json_schema
from ablation.study import load_study
from ablation.trainers import load_trainer

STUDY = """\
name: mask-strategy
trainer: hpm
preset: PRESET
seeds: [0, 1, 2]
evaluate: [knn]
metric: knn/top1
baseline: random
rows:
  random:       {mask.hard_share: 0.0}
  easy-to-hard: {mask.hard_share: [0.0, 0.5]}
  hardest only: {mask.hard_share: 1.0}
  easiest:      {mask.hard_share: [0.0, 0.5], mask.prefer: easy}
set: {predictor.objective: relative}
"""


class Hpm:
    """The installed trainer with one more preset: nothing but defaults."""

    def __init__(self) -> None:
        self.real = load_trainer("hpm")
        self.name, self.result_version = self.real.name, self.real.result_version
        self.stages, self.metrics = self.real.stages, self.real.metrics
        self.reads, self.fingerprint = self.real.reads, self.real.fingerprint
        self.fits, self.check = self.real.fits, self.real.check

    def presets(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        return {"defaults": {}, **self.real.presets()}


def lookup(name: str) -> Trainer:
    assert name == "hpm"
    return Hpm()


def test_load__every_preset_of_the_method_can_be_ablated(tmp_path: Path) -> None:
    trainer, file = lookup("hpm"), tmp_path / "x.yaml"
    for preset in trainer.presets():
        file.write_text(STUDY.replace("PRESET", preset))
        study = load_study(file, lookup=lookup)
        assert [row.config.mask.hard_range for row in study.rows] == [
            (0, 0),
            (0, 0.5),
            (1, 1),
            (0, 0.5),
        ]
    assert set(json_schema(trainer)["properties"]["preset"]["enum"]) == set(trainer.presets())


def test_load__the_methods_own_rules_are_told_at_their_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    text = STUDY.replace("PRESET", "defaults").replace("1.0}", "1.5, mask.ratio: 1}")
    mae = "  mae: {predictor.objective: none, mask.hard_share: 1}\n"
    file.write_text(text.replace("  easiest", f"{mae}  easiest"))
    with pytest.raises(StudyError) as caught:
        load_study(file, lookup=lookup)
    assert str(caught.value).replace(str(file), "x.yaml").splitlines() == [
        "x.yaml:11: mask.hard_share must be a number in [0, 1] or two of them, [first, last], "
        "got 1.5.",
        "x.yaml:11: mask.ratio must be a number in (0, 1) or two of them, [first, last], got 1.",
        "x.yaml:12: mask.hard_share must be 0 without a loss predictor "
        "(predictor.objective: none), got 1.0.",
    ]


def test_load__a_teacher_that_does_not_fit_is_told_where_it_is_named(tmp_path: Path) -> None:
    file, weights = tmp_path / "x.yaml", tmp_path / "weights.pth"
    weights.write_bytes(b"none")
    row = "\n  features:\n    target.kind: teacher\n    target.teacher: vit_tiny_patch16_224\nset:"
    file.write_text(STUDY.replace("PRESET", "vit_pico_32px").replace("\nset:", row))
    with pytest.raises(StudyError) as caught:
        load_study(file, place=Place(data={"vit_tiny_patch16_224": weights}))
    (problem,) = caught.value.problems
    assert problem.line == 15
    assert problem.sentence == (
        f"features: {weights} must hold the weights of vit_tiny_patch16_224, for images of 128 "
        "pixels: it is no checkpoint of tensors and plain values alone."
    )
