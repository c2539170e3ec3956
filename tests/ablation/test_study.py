"""Reading a study: names and dotted settings become complete configurations."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TypeAlias

from ablation.study import Study

Reader: TypeAlias = Callable[[str], Study]
Problem: TypeAlias = Callable[[str], str]

HEAD = """\
name: bread
trainer: bakery
preset: plain
seeds: [0, 1]
evaluate: [taste]
metric: taste/score
baseline: a
"""
ROWS = "rows: {a: {minutes: 30}, b: {minutes: 40}}\n"


def changed(key: str, line: str) -> str:
    """The head with one key written differently."""
    return "".join(
        line + "\n" if row.startswith(f"{key}:") else row for row in HEAD.splitlines(keepends=True)
    )


def test_load__gives_complete_configurations(read: Reader) -> None:
    study = read(
        changed("preset", "preset: hot")
        + "question: Does time matter?\nset: {oven: {racks: [1, 2]}, glaze: 1}\n"
        + "rows:\n  a: {minutes: 30}\n  b: {minutes: 40, glaze: [0, 1], oven.heat: 1e2}\n"
        + "references: [raw]\npublished: {a: 82.5, b: {value: 83, source: P, status: author}}\n"
    )
    a, b = study.rows
    common = {"data": "wheat", "kind": "loaf", "steam": False}
    hot, warm = ({"heat": heat, "racks": (1, 2)} for heat in (280.0, 100.0))
    assert asdict(a.config) == {**common, "oven": hot, "glaze": 1.0, "minutes": 30}
    assert asdict(b.config) == {**common, "oven": warm, "glaze": (0.0, 1.0), "minutes": 40}
    assert isinstance(a.config.glaze, float)
    (taste,), (raw,) = study.evaluations, study.references
    assert asdict(taste.config) == {"oven": None, "judges": 3, "salt": 1.0}
    assert asdict(raw.config) == {"oven": hot, "data": "wheat"}
    assert list(study.metrics) == ["taste/score", "taste/flaws"]
    published = {row: numbers["taste/score"] for row, numbers in study.published.items()}
    assert (published["a"].value, published["b"].status) == (82.5, "author")
    assert (study.trainer, study.train, study.seeds) == ("bakery", "bake", (0, 1))


def test_load__evaluation_settings_and_training_metric(read: Reader) -> None:
    head = changed("metric", "metric: bake/loss")
    head = head.replace("[taste]", "[look, {taste: {judges: 5, oven.heat: 90}}]")
    study = read(head + ROWS)
    look, taste = study.evaluations
    assert (look.name, look.config.judges, look.config.oven) == ("look", 1, None)
    assert (taste.name, taste.config.judges, taste.config.oven.heat) == ("taste", 5, 90.0)
    assert list(study.metrics) == ["bake/loss", "look/score", "taste/score", "taste/flaws"]


def test_load__grid_multiplies_with_down_first(read: Reader) -> None:
    study = read(
        changed("baseline", "baseline: loaf / 30")
        + "grid:\n  time: {30: {minutes: 30}, 40: {minutes: 40}}\n"
        + "  shape: {loaf: {kind: loaf}, roll: {kind: roll}}\n"
        + "layout: {down: shape, across: time}\n"
    )
    assert [row.label for row in study.rows] == ["loaf / 30", "loaf / 40", "roll / 30", "roll / 40"]
    assert [(row.config.kind, row.config.minutes) for row in study.rows[2:]] == [
        ("roll", 30),
        ("roll", 40),
    ]
    assert [axis.name for axis in study.axes] == ["shape", "time"]


def test_load__labels_are_the_words_in_the_file(read: Reader) -> None:
    study = read(
        changed("baseline", "baseline: 0.50") + "rows: {0.50: {glaze: 0.5}, yes: {glaze: 1}}"
    )
    assert [row.label for row in study.rows] == ["0.50", "yes"]
    assert study.baseline == "0.50"
    claimed = changed("baseline", "baseline: 0.50") + (
        "rows: {0.50: {glaze: 0.5}, yes: {glaze: 1}}\nclaims: {1.0: {better: 0.50, than: yes}}"
    )
    (question,) = read(claimed).questions
    assert (question.name, question.pair) == ("1.0", ("0.50", "yes"))
    assert question.metric == "taste/score"


def test_load__set_may_break_a_rule_that_every_row_mends(read: Reader, problem: Problem) -> None:
    text = changed("preset", "preset: hot") + "set: {steam: true}\nreferences: [raw]\n"
    mended = text + "rows: {a: {oven.heat: 100}, b: {oven.heat: 200}}\n"
    assert [row.config.oven.heat for row in read(mended).rows] == [100.0, 200.0]
    assert read(mended).references[0].config.oven.heat == 280.0
    broken = problem(text + ROWS)
    assert broken == "x.yaml:8: steam must be false above 250, got heat 280."


def test_load__a_required_setting_of_a_stage_is_asked_for(problem: Problem) -> None:
    text = changed("preset", "preset: bare") + ROWS
    assert problem(text) == "x.yaml:5: taste: judges must be set to a whole number."


def test_load__a_reference_meets_what_only_rows_mend(read: Reader, problem: Problem) -> None:
    text = HEAD + "set: {oven.heat: 301}\nrows: {a: {oven.heat: 100}, b: {oven.heat: 200}}\n"
    assert len(read(text).rows) == 2
    assert problem(text + "references: [raw]") == (
        "x.yaml:8: oven.heat must be in (0, 300), got 301."
    )


def test_reference__set_counts_more_than_what_the_preset_says_of_it(read):
    text = """\
name: x
trainer: bakery
preset: rack
set: {oven.heat: 190}
seeds: [0]
evaluate: [taste]
references: [raw]
metric: taste/score
baseline: a
rows:
  a: {minutes: 1}
"""
    (reference,) = read(text).references
    assert (reference.config.oven.heat, reference.config.oven.racks) == (190.0, (7,))
    (reference,) = read(text.replace("set: {oven.heat: 190}\n", "")).references
    assert (reference.config.oven.heat, reference.config.oven.racks) == (150.0, (7,))


def test_reference__its_own_settings_count_most_and_are_in_its_label(read: Reader) -> None:
    study = read(
        changed("preset", "preset: rack")
        + "set: {oven.heat: 190}\n"
        + ROWS
        + "references: [raw, {raw: {data: rye, oven: {heat: 90}}}, {raw: {oven.racks: [1, 2]}}]\n"
    )
    assert [(raw.label, raw.name) for raw in study.references] == [
        ("raw", "raw"),
        ("raw (data: rye, oven.heat: 90)", "raw"),
        ("raw (oven.racks: [1, 2])", "raw"),
    ]
    assert [(raw.config.oven.heat, raw.config.oven.racks) for raw in study.references] == [
        (190.0, (7,)),
        (90.0, (7,)),
        (190.0, (1, 2)),
    ]
