"""Reading a study: every mistake is told with its line, and all of them at once."""

from collections.abc import Callable
from typing import TypeAlias

import pytest

Problem: TypeAlias = Callable[[str], str]
Problems: TypeAlias = Callable[[str], list[str]]

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


@pytest.mark.parametrize(
    ("key", "line", "expected"),
    [
        ("name", "name: a/b", "1: name must be 1 to 100 letters, digits, spaces and _.-, "
         "beginning with a letter or digit and not ending with a space, got \"a/b\"."),
        ("name", "name: ''", "1: name must be 1 to 100 letters"),
        ("name", "name: lr sweep (toy)", "1: name must be 1 to 100 letters"),
        ("name", "name: ..", "1: name must be 1 to 100 letters"),
        ("name", 'name: "a "', "1: name must be 1 to 100 letters"),
        ("name", 'name: "a\\tb"', "1: name must be 1 to 100 letters"),
        ("trainer", "trainer: bakry",
         "2: trainer must be installed, got 'bakry'. Did you mean 'bakery'?"),
        ("trainer", "", "1: trainer must be given: the name of an installed trainer."),
        ("preset", "preset: plan",
         "3: preset must be one of bakery's, got 'plan'. Did you mean 'plain'?"),
        ("preset", "preset: burnt", "3: oven.heat must be in (0, 300), got 900."),
        ("seeds", "seeds: []", "4: seeds must be a list of at least one whole number from 0 to "
         "4294967295, all different, got []."),
        ("seeds", "seeds: [1, 1]", "4: seeds must be a list"),
        ("seeds", "seeds: [-1]", "4: seeds must be a list"),
        ("seeds", "seeds: [true]", "4: seeds must be a list"),
        ("seeds", "seeds: 3", "4: seeds must be a list"),
        ("evaluate", "evaluate: [taste, tast]",
         "5: evaluate must name evaluations of bakery, got 'tast'. Did you mean 'taste'?"),
        ("evaluate", "evaluate: [taste, taste]",
         "5: evaluate must name a stage once, got 'taste' again."),
        ("evaluate", "evaluate: [{taste: {judge: 2}}]",
         "5: judge is no setting. Did you mean 'judges'?"),
        ("evaluate", "evaluate: [{taste: {judges: two}}]",
         '5: taste: judges must be a whole number, got "two".'),
        ("evaluate", "evaluate: [{taste: {oven: 2}}]",
         "5: taste: oven must be settings of its own or null, got 2."),
        ("evaluate", "evaluate: [taste, {look: {oven.heat: 999}}]",
         "5: look: oven.heat must be in (0, 300), got 999."),
        ("metric", "metric: taste/scor",
         "6: metric must be one of bakery's, got 'taste/scor'. Did you mean 'taste/score'?"),
        ("metric", "metric: look/score",
         "6: metric must be of an evaluated stage. Add look to evaluate."),
        ("baseline", "baseline: c", "7: baseline must be a row, got 'c'. Choose from: a, b."),
    ],
)  # fmt: skip
def test_load__one_wrong_key(problem: Problem, key: str, line: str, expected: str) -> None:
    assert problem(changed(key, line) + ROWS).startswith(f"x.yaml:{expected}")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("sets: {}", "9: 'sets' is no key of a study. Did you mean 'set'?"),
        ("set: {minutes: yes}", '9: minutes must be a whole number, got "yes".'),
        ("set: {minutes: 3.0}", "9: minutes must be a whole number, got 3.0."),
        ("set: {steam: 1}", "9: steam must be true or false, got 1."),
        ("set: {glaze: true}",
         "9: glaze must be a number or a list of 2, each a number, got true."),
        ("set: {oven.racks: [1, x]}",
         '9: oven.racks must be a list, each a whole number, got [1, "x"].'),
        ("set: {kind: rol}",
         "9: kind must be one of loaf, roll, got \"rol\". Did you mean 'roll'?"),
        ("set: {minutes: }", "9: minutes must be a whole number, got nothing."),
        ("set: {oven: 3}", "9: oven must be settings of its own, got 3."),
        ("set: {oven.heat: .nan}", "9: numbers must be finite, got .nan."),
        ("set: {oven.heat: 301}", "9: oven.heat must be in (0, 300), got 301."),
        ("set:\n  oven:\n    haet: 3", "11: oven.haet is no setting. Did you mean 'oven.heat'?"),
        ("references: [5]", "9: references must be a list of the trainer's reference stages, each "
         "a name or {name: settings}, such as [random, {checkpoint: {weights: mae-b}}], got 5."),
        ("references: [raw, raw]", "9: reference 'raw' must differ from reference 'raw', but the "
         "two are one configuration. Change a setting or drop one."),
        ("references: [raw, {raw: {oven.heat: 180}}]",
         "9: reference 'raw (oven.heat: 180)' must differ from reference 'raw', but"),
        ("references: [{raw: {oven.haet: 3}}]",
         "9: oven.haet is no setting. Did you mean 'oven.heat'?"),
        ("references:\n  - raw\n  - raw: {oven: {heat: 301}}",
         "11: oven.heat must be in (0, 300), got 301."),
        ("set: {glaze: " + "x" * 99 + "}",
         "9: glaze must be a number or a list of 2, each a number, got \"" + "x" * 56 + "...."),
        ("references: [row]",
         "9: references must be stages of bakery, got 'row'. Did you mean 'raw'?"),
        ("published: {a: 1, c: 2}",
         "9: a label in published must be a row, got 'c'. Choose from: a, b."),
        ("published:\n  a:\n    value: 1\n    stat: author",
         "12: 'stat' is no key of published. Did you mean 'status'?"),
        ("published: {a: {value: 1, source: 2.50}}",
         "9: published must be row labels, each with a number or {value, source, status: author or "
         "second-hand, note}, or with these by metric, got \"2.50\"."),
        ("published: {a: true}", "9: published must be row labels, each with a number or"),
        ("published: {a: high}", "9: published must be row labels, each with a number or"),
        ("published: {a: {taste/scor: 1}}", "9: published must be of metrics that the table shows, "
         "got 'taste/scor'. Did you mean 'taste/score'?"),
        ("published: {a: {look/score: 1}}",
         "9: published must be of metrics that the table shows, got 'look/score'."),
        ("published:\n  a:\n    taste/score: {value: 1, stat: author}",
         "11: 'stat' is no key of published. Did you mean 'status'?"),
        ("published:\n  a:\n    taste/score: high",
         "11: published must be row labels, each with a number or"),
        ("printed: {a: 1}",
         "9: a label in printed must be no row, got 'a'. Put it into published."),
        ("printed: {c: {source: x}}", "9: printed must be printable labels that are no rows, each"),
        ("printed: {c: {value: 1, sorce: x}}",
         "9: 'sorce' is no key of printed. Did you mean 'source'?"),
        ("claims: {x: {better: a, than: c}}",
         "9: than must be a row, got 'c'. Choose from: a, b."),
        ("claims:\n  x:\n    better: aa\n    than: b",
         "11: better must be a row, got 'aa'. Did you mean 'a'?"),
        ("claims: {x: {better: a, than: a}}",
         "9: better and than must be two rows, got 'a' and 'a'."),
        ("claims: {x: {better: a}}", "9: claims must be names, each with {better: label, than:"),
        ("claims: {x: {better: a, than: b, metrics: taste/score}}",
         "9: 'metrics' is no key of claims. Did you mean 'metric'?"),
        ("claims: {x: {better: a, than: b, metric: look/score}}",
         "9: claims must be of metrics that the table shows, got 'look/score'."),
        ("grid: {x: {y: {minutes: 3}}}", "9: a study must have either rows or a grid, got both."),
    ],
)  # fmt: skip
def test_load__one_wrong_extra(problem: Problem, extra: str, expected: str) -> None:
    assert problem(HEAD + ROWS + extra).startswith(f"x.yaml:{expected}")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("rows: {}", "8: rows must be at least one printable label"),
        ("", "1: a study must have either rows or a grid, got neither."),
        ("grid: {}", "8: grid must be at least one axis"),
        ("grid: {x: {}}", "8: grid must be at least one axis"),
        ("rows:\n  a: {minutes: 3}\n  b: {}", "10: row 'b' changes nothing. Name the "
         "setting in which it differs from the others; where they change it, a level may restate "
         "the preset's value."),
        ("rows:\n  a: {minutes: 3}\n  b:", "10: row 'b' changes nothing."),
        ("rows:\n  a: {minutes: 3}\n  b: {steam: false}", "10: row 'b' changes nothing."),
        ("rows:\n  a: {minutes: 3}\n  b: {minutes: 4}\n  c: {minutes: 3}",
         "11: row 'c' must differ from row 'a', but the two are one configuration. "
         "Change a setting or drop a row."),
        ("rows:\n  a: {minutes: 3}\n  a: {minutes: 4}",
         "10: 'a' is here twice, first in line 9. Rename one."),
        ("rows:\n  a: {minutes: 3}\n  b: [4]", "10: rows must be at least one printable label"),
        ("rows:\n  a: {minutes: 3}\n  b: {minuets: 4}",
         "10: minuets is no setting. Did you mean 'minutes'?"),
        ("rows:\n  a: {minutes: 3}\n  b: {minutes: 0}", "10: minutes must be at least 1, got 0."),
        ("rows:\n  a: {minutes: 3}\n  b:\n    oven:\n      heat: 301",
         "12: oven.heat must be in (0, 300), got 301."),
        ("rows:\n  a: {minutes: 3}\n  b: {steam: true, oven.heat: 280}",
         "10: steam must be false above 250, got heat 280."),
        ("set: {steam: true}\nrows:\n  a: {minutes: 3}\n  b: {oven.heat: 280}",
         "11: row 'b': steam must be false above 250, got heat 280."),
    ],
)  # fmt: skip
def test_load__one_wrong_row(problems: Problems, rows: str, expected: str) -> None:
    found = problems(HEAD + rows)
    assert found[0].startswith(f"x.yaml:{expected}")
    assert len(found) == 1


def test_load__wrong_grids(problems: Problems, problem: Problem) -> None:
    grid = "grid:\n  time: {s: {minutes: 3}, l: {minutes: 4}}\n  shape: {x: {kind: roll}, y: {}}\n"
    assert problems(HEAD + grid + "layout: {down: tme, across: shape}") == [
        "x.yaml:7: baseline must be a row, got 'a'. Choose from: s / x, s / y, l / x, l / y.",
        "x.yaml:10: level 'y' changes nothing. Name the setting in which it differs from the "
        "others; where they change it, a level may restate the preset's value.",
        "x.yaml:11: layout.down must be an axis of the grid, got 'tme'. Did you mean 'time'?",
    ]
    twice = "grid:\n  one: {s: {minutes: 3}, l: {minutes: 4}}\n  two: {x: {minutes: 3}}\n"
    found = problems(changed("baseline", "baseline: s / x") + twice)
    assert "x.yaml:10: minutes must be set by one axis, got 'one' and 'two'." in found
    claims = "claims:\n  p: {better: x, than: s}\n  q: {better: x, than: s / z}\n"
    shapes = grid.replace("y: {}", "z: {kind: loaf}")
    assert problems(changed("baseline", "baseline: s / x") + shapes + claims) == [
        "x.yaml:12: better and than must be two rows, or two levels of one axis, got 'x' and 's'.",
        "x.yaml:13: better and than must be two rows, or two levels of one axis, got 'x' and "
        "'s / z'.",
    ]
    slash = "grid: {x: {a / b: {minutes: 3}}}"
    assert problem(changed("baseline", "baseline: a / b") + slash).startswith(
        "x.yaml:8: grid must be at least one axis, each with at least one level (no ' / ' in its"
    )
    alone = "grid:\n  one: {a: {minutes: 3}, l: {minutes: 4}}\nlayout: {down: one, across: one}"
    assert problem(HEAD + alone) == (
        "x.yaml:10: layout must name the two axes of a grid of two, one down and one across."
    )


def test_load__grid_rule_between_levels_names_the_combination(
    problem: Problem,
) -> None:
    grid = (
        "grid:\n  heat: {low: {oven.heat: 200}, high: {oven.heat: 280}}\n"
        "  air: {dry: {steam: false}, wet: {steam: true}}\n"
    )
    line = problem(changed("baseline", "baseline: low / dry") + grid)
    assert line == "x.yaml:10: steam must be false above 250, got heat 280."


def test_load__without_a_preset_only_what_a_row_says_is_judged(problems: Problems) -> None:
    text = changed("preset", "preset: ht") + "rows: {a: {oven.heat: 280}, b: {oven.heat: 900}}\n"
    assert problems(text + "set: {steam: true}\n") == [
        "x.yaml:3: preset must be one of bakery's, got 'ht'. Did you mean 'hot'?",
        "x.yaml:8: oven.heat must be in (0, 300), got 900.",
    ]


def test_load__nested_settings_that_are_not_set_are_not_blamed(problem: Problem) -> None:
    text = HEAD + "rows:\n  a: {steam: false}\n  b: {steam: true, oven: {racks: [2]}}\n"
    line = problem(text + "set: {oven.heat: 400}\n")
    assert line == "x.yaml:11: oven.heat must be in (0, 300), got 400."


def test_load__says_everything_at_once_and_common_faults_once(problems: Problems) -> None:
    text = (
        "name: bread\ntrainer: bakery\npreset: plain\nseeds: [0]\nseed: 3\n"
        "evaluate: [taste, lok]\nmetric: taste/x\nbaseline: z\n"
        "set: {oven.heat: hot, glaze: 2}\n"
        "rows:\n  a: {minutes: 0, steam: 3}\n  b: {kindd: roll}\n  c: {kind: cake}\n"
    )
    assert problems(text) == [
        "x.yaml:5: 'seed' is no key of a study. Did you mean 'seeds'?",
        "x.yaml:6: evaluate must name evaluations of bakery, got 'lok'. Did you mean 'look'?",
        "x.yaml:7: metric must be one of bakery's, got 'taste/x'. Did you mean 'taste/score'?",
        "x.yaml:8: baseline must be a row, got 'z'. Choose from: a, b, c.",
        'x.yaml:9: oven.heat must be a number, got "hot".',
        "x.yaml:11: minutes must be at least 1, got 0.",
        "x.yaml:11: steam must be true or false, got 3.",
        "x.yaml:12: kindd is no setting. Did you mean 'kind'?",
        'x.yaml:13: kind must be one of loaf, roll, got "cake".',
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "- 1\n", "bread"])
def test_load__a_file_that_is_no_study(problem: Problem, text: str) -> None:
    line = problem(text)
    assert line.startswith(("x.yaml:1: must not be empty.", "x.yaml:1: must be keys with values"))
    assert line.endswith(
        "A study needs name, trainer, preset, seeds, metric, baseline and rows or a grid."
    )
