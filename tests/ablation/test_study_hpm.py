"""Studies of the method itself: the installed trainer, found by its entry point."""

from pathlib import Path

import pytest

from ablation.problems import StudyError
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
"""


def test_load__every_preset_of_the_method_can_be_ablated(tmp_path: Path) -> None:
    trainer, file = load_trainer("hpm"), tmp_path / "x.yaml"
    for preset in trainer.presets():
        file.write_text(STUDY.replace("PRESET", preset))
        study = load_study(file)
        assert [row.config.mask.hard_range for row in study.rows] == [
            (0, 0),
            (0, 0.5),
            (1, 1),
            (0, 0.5),
        ]
    assert set(json_schema(trainer)["properties"]["preset"]["enum"]) == set(trainer.presets())


def test_load__the_methods_own_rules_are_told_at_their_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    preset = next(iter(load_trainer("hpm").presets()))
    text = STUDY.replace("PRESET", preset).replace("1.0}", "1.5, mask.ratio: 1}")
    file.write_text(text + "  mae: {predictor.objective: none, mask.hard_share: 1}\n")
    with pytest.raises(StudyError) as caught:
        load_study(file)
    assert str(caught.value).replace(str(file), "x.yaml").splitlines() == [
        "x.yaml:11: mask.hard_share must be a number in [0, 1] or two of them, [first, last], "
        "got 1.5.",
        "x.yaml:11: mask.ratio must be in (0, 1), got 1.",
        "x.yaml:13: mask.hard_share must be 0 without a loss predictor "
        "(predictor.objective: none), got 1.0.",
    ]
