"""Tables: every number with its seeds, every absence with its reason; and three ways to draw one,
on awkward labels too.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from ablation.cells import Begun, Failed, Finished, Standing, Waiting
from ablation.certificate import Certificate
from ablation.latex import to_latex
from ablation.plan import Plan, plan
from ablation.protocol import Place
from ablation.render import to_markdown, to_text
from ablation.spreadsheet import to_csv
from ablation.statistics import Difference
from ablation.study import load_study
from ablation.table import Table, TableRow, tabulate
from ablation.toy import ToyTrainer

HEAD = """\
name: toys
question: Does the rate matter?
trainer: toy
preset: quick
seeds: [0, 1, 2]
evaluate: [score, probe]
metric: score/accuracy
"""
ROWS = (
    HEAD
    + """\
baseline: a
references: [noise]
rows: {a: {rate: 0.1}, b: {rate: 0.2}, c: {rate: 0.3}}
published: {b: {value: 82.5, source: Table 1, status: second-hand}}
"""
)
GRID = (
    HEAD
    + """\
baseline: low / x
grid:
  rate: {low: {rate: 0.1}, high: {rate: 0.2}}
  mask: {x: {mask.ratio: 0.1}, y: {mask.ratio: 1}}
layout: {down: rate, across: mask}
published: {high / y: 80}
"""
)

Planner = Callable[[str], Plan]
Numbers = Mapping[tuple[str, int], float | Standing]


@pytest.fixture
def planned(tmp_path: Path) -> Planner:
    def make(text: str) -> Plan:
        (tmp_path / "x.yaml").write_text(text)
        study = load_study(tmp_path / "x.yaml", lookup=lambda name: ToyTrainer())
        return plan(study, ToyTrainer(), Place())

    return make


def standings(found: Plan, numbers: Numbers) -> dict[str, Standing]:
    """Finished trainings, and evaluations with the number (probe: half of it) of (row, seed)."""
    stands: dict[str, Standing] = {}
    for cell in found.cells:
        train, score, probe = cell.stages
        match numbers.get((cell.row, cell.seed), Waiting()):
            case float() | int() as number:
                stands[train.digest] = Finished({"loss": 0.1})
                stands[score.digest] = Finished({"accuracy": number})
                stands[probe.digest] = Finished({"accuracy": number / 2})
            case standing:
                stands[train.digest] = standing
    return stands


def full(rows: Mapping[str, tuple[float, float, float]]) -> Numbers:
    return {(row, seed): v for row, values in rows.items() for seed, v in enumerate(values)}


COMPLETE = full(
    {
        "a": (82.40, 82.50, 82.57),
        "b": (82.90, 82.95, 83.10),
        "c": (82.50, 82.40, 82.60),
        "noise": (10.1, 10.2, 10.0),
    }
)


def by_label(table: Table) -> dict[str, TableRow]:
    return {row.label: row for row in table.rows}


def test_tabulate__a_complete_study(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, standings(found, COMPLETE))
    rows = by_label(table)
    entry = rows["b"].entries["score/accuracy"]
    assert entry.summary is not None
    assert (entry.n, entry.expected) == (3, 3)
    assert entry.summary.mean == pytest.approx(82.98333)
    # Differences 0.50, 0.45, 0.53: mean 0.49333, sd 0.040415, t(2) = 4.302653.
    assert entry.difference is not None
    assert entry.difference.mean == pytest.approx(0.493333, abs=1e-6)
    assert entry.difference.low == pytest.approx(0.493333 - 0.100396, abs=1e-5)
    assert (entry.verdict, rows["c"].entries["score/accuracy"].verdict) == ("better", "undecided")
    assert rows["a"].entries["score/accuracy"].difference is None
    assert rows["a"].baseline
    assert not rows["b"].baseline
    assert [metric.name for metric in table.metrics] == ["score/accuracy", "probe/accuracy"]
    assert rows["b"].entries["probe/accuracy"].results[0].value == 82.90 / 2
    assert [row.label for row in table.references] == ["noise"]
    assert table.references[0].entries["score/accuracy"].difference is None
    assert table.missing == ()
    assert rows["b"].published["score/accuracy"].value == 82.5
    assert rows["a"].published == {}
    assert table.notes == (
        "Published: Table 1 (second-hand).",
        "No published reference: a, c.",
        "Differences are paired by seed, with 95% intervals by Student's t, each by itself: "
        "no correction for 4 comparisons.",
    )


def test_tabulate__every_number_leads_to_its_stage(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, standings(found, COMPLETE))
    digests = {
        (cell.row, cell.seed, f"{stage.name}/accuracy"): stage.digest
        for cell in found.cells
        for stage in cell.stages[1:]
    }
    traced = {
        (row.label, result.seed, metric): result.digest
        for row in (*table.rows, *table.references)
        for metric, entry in row.entries.items()
        for result in entry.results
    }
    assert traced == digests


def test_tabulate__names_what_is_missing(planned: Planner) -> None:
    found = planned(ROWS)
    numbers: Numbers = {
        **{key: value for key, value in COMPLETE.items() if key != ("noise", 2)},
        ("a", 1): Failed("out of\n  memory"),
        ("b", 2): Begun(5, 8),
        ("c", 0): Finished({"loss": 0.1}),
        ("c", 2): float("nan"),
    }
    stands = standings(found, numbers)
    b0 = next(cell for cell in found.cells if cell.title == "b, seed 0")
    stands[b0.stages[2].digest] = Finished({"loss": 1.0})
    table = tabulate(found, stands)
    assert table.missing == (
        "a, seed 1: train failed: out of memory",
        "b, seed 0: probe finished without accuracy",
        "b, seed 2: train 62 %",
        "c, seed 0: score not started",
        "c, seed 0: probe not started",
        "c, seed 2: score finished with accuracy = nan",
        "c, seed 2: probe finished with accuracy = nan",
        "reference noise, seed 2: noise not started",
    )
    entry = by_label(table)["b"].entries["score/accuracy"]
    assert (entry.n, entry.expected) == (2, 3)
    # a and b have only seed 0 in common.
    assert entry.difference == Difference(n=1, mean=pytest.approx(0.5))
    assert entry.verdict == "undecided"
    assert by_label(table)["c"].entries["score/accuracy"].difference is None
    assert "A difference of one seed has no interval and decides nothing." in table.notes


def test_tabulate__nothing_yet(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, {})
    assert len(table.missing) == 12
    assert all(row.entries["score/accuracy"].n == 0 for row in table.rows)
    assert table.notes == (
        "Published: Table 1 (second-hand).",
        "No published reference: a, c.",
    )
    assert "| a | 0 of 3 | — |" in to_markdown(table)


def test_tabulate__a_seed_that_changes_nothing_is_no_certainty(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, standings(found, full({"a": (1, 1, 1), "b": (2, 2, 2)})))
    assert by_label(table)["b"].entries["score/accuracy"].verdict == "undecided"
    assert "A difference that is the same for every seed has no interval." in table.notes


def test_tabulate__a_metric_of_the_training(planned: Planner) -> None:
    found = planned(ROWS.replace("metric: score/accuracy", "metric: train/loss"))
    table = tabulate(found, standings(found, COMPLETE))
    entry = by_label(table)["b"].entries["train/loss"]
    assert entry.summary is not None
    assert entry.summary.mean == pytest.approx(0.1)
    # A reference does not train: it has no such number, and lacks none.
    assert table.references[0].entries["train/loss"].summary is None
    assert table.missing == ()


def test_tabulate__a_stage_of_no_steps_yet_has_begun(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, standings(found, {("a", 0): Begun(0, 0)}))
    assert table.missing[0] == "a, seed 0: train 0 %"


def text_of(table: Table, *, flat: bool = False, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(to_text(table, width=width, flat=flat))
    return capture.get()


def test_to_text__is_readable_at_80_columns(planned: Planner) -> None:
    found = planned(ROWS)
    text = text_of(tabulate(found, standings(found, COMPLETE)))
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("82.98 ± 0.10", "+0.49", "[+0.39, +0.59]", "better", "82.5", "noise"):
        assert word in text
    assert "probe/accuracy ↑" in text
    wide = text_of(tabulate(found, standings(found, COMPLETE)), width=160)
    assert len(wide.splitlines()) < len(text.splitlines())


def test_renderers__a_question_is_optional(planned: Planner) -> None:
    table = tabulate(planned(ROWS.replace("question: Does the rate matter?\n", "")), {})
    assert to_markdown(table).startswith("## toys\n\n| row | n |")
    assert "rate" not in text_of(table)


def test_to_text__names_what_is_missing(planned: Planner) -> None:
    found = planned(ROWS)
    text = text_of(tabulate(found, standings(found, {("a", 0): Failed("boom [red]")})))
    assert "a, seed 0: train failed: boom [red]" in text
    assert "0 of 3" in text


def test_to_markdown__bolds_only_what_the_interval_supports(planned: Planner) -> None:
    found = planned(ROWS)
    text = to_markdown(tabulate(found, standings(found, COMPLETE)))
    assert text.count("**") == 4
    assert "| b | 3 | **82.98 ± 0.10** | +0.49 \\[+0.39, +0.59\\] | better |" in text
    assert "| c | 3 | 82.50 ± 0.10 |" in text
    assert "### References" in text


def test_renderers__grids(planned: Planner) -> None:
    found = planned(GRID)
    numbers = full({"low / x": (1.0, 1.1, 1.2), "high / y": (2.0, 2.2, 2.1)})
    table = tabulate(found, standings(found, {**numbers, ("low / y", 0): 1.5}))
    markdown = to_markdown(table)
    assert "| score/accuracy ↑: rate | x | y |" in markdown
    assert "| low | 1.10 ± 0.10 | 1.50 (1 of 3) |" in markdown
    assert "| high | — (0 of 3) | **2.10 ± 0.10** (published 80) |" in markdown
    assert "| probe/accuracy ↑: rate | x | y |" in markdown
    assert "| high / y | +1.00 \\[" in markdown
    assert "| low / x | 3 |" in to_markdown(table, flat=True)
    assert "low / x" in text_of(table, flat=True)
    assert "published 80" in text_of(table)
    (first, *_) = csv.DictReader(io.StringIO(to_csv(table)))
    assert (first["rate"], first["mask"], first["row"]) == ("low", "x", "low / x")


AWKWARD = ["a|b", "*bold*", "[red]x[/red]", "=1+1", "+pred", "-0.5", "@x", "ü <b>", "back\\slash"]


def test_renderers__awkward_labels(planned: Planner) -> None:
    labels = ", ".join(f"{label!r}: {{rate: 0.{i + 1}}}" for i, label in enumerate(AWKWARD))
    labels = labels.replace("\\\\", "\\")
    found = planned(f"{HEAD}baseline: 'a|b'\nrows: {{{labels}}}\n")
    table = tabulate(found, {})
    assert [row.label for row in table.rows] == AWKWARD
    text = text_of(table)
    assert all(label in text for label in AWKWARD)
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1
    assert any(line.startswith("| a\\|b |") for line in lines)
    assert any(line.startswith("| \\*bold\\* |") for line in lines)
    read = [row["row"] for row in csv.DictReader(io.StringIO(to_csv(table)))][::2]
    assert read == [
        "a|b",
        "*bold*",
        "[red]x[/red]",
        "'=1+1",
        "'+pred",
        "'-0.5",
        "'@x",
        *AWKWARD[7:],
    ]


def test_to_csv__full_precision_and_provenance(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, standings(found, {**COMPLETE, ("b", 1): Begun(1, 2)}))
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(rows) == 2 * 4
    b = next(row for row in rows if (row["row"], row["metric"]) == ("b", "score/accuracy"))
    assert (b["n"], b["expected"], b["seed 0"], b["seed 1"]) == ("2", "3", "82.9", "")
    assert (b["published"], b["source"], b["status"]) == ("82.5", "Table 1", "second-hand")
    assert b["seed 1 missing"] == "train 50 %"
    assert b["seed 0 stage"] in found.stages
    entry = by_label(table)["b"].entries["score/accuracy"]
    assert entry.summary is not None
    assert float(b["sd"]) == entry.summary.sd
    assert [row["kind"] for row in rows][-2:] == ["reference", "reference"]


def test_to_latex__has_what_markdown_has(planned: Planner) -> None:
    found = planned(ROWS)
    held = verified(found, "b, seed 1")
    text = to_latex(tabulate(found, standings(found, {**COMPLETE, ("c", 2): Begun(1, 2)}), held))
    lines = text.splitlines()
    assert lines[0] == "% toys"
    assert r"row & n & score/accuracy $\uparrow$ & minus baseline & verdict" in text
    row = r"b $\checkmark$ & 3 & \textbf{82.98 $\pm$ 0.10} & +0.49 {[}+0.39, +0.59] & better"
    assert any(line.startswith(row) for line in lines)
    assert "% Missing: c, seed 2: train 50 %" in lines
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 2
    grid = to_latex(tabulate(planned(GRID), {}))
    assert r"score/accuracy $\uparrow$: rate & x & y \\" in grid


def test_to_latex__awkward_labels_say_themselves(planned: Planner) -> None:
    labels = ["50% & more", "a_b^c", "[x]", "*y*", "{z}", "#1 $"]
    rows = ", ".join(f"{label!r}: {{rate: 0.{i + 1}}}" for i, label in enumerate(labels))
    text = to_latex(tabulate(planned(f"{HEAD}baseline: a_b^c\nrows: {{{rows}}}\n"), {}))
    written = [line.partition(" & ")[0] for line in text.splitlines()[6:12]]
    assert written == [
        r"50\% \& more", r"a\_b\textasciicircum{}c", "{[}x]", "{*}y{*}", r"\{z\}", r"\#1 \$"
    ]  # fmt: skip


def verified(found: Plan, *titles: str) -> dict[str, Certificate]:
    """Certificates of cells."""
    held = Certificate(kills=3, steps=60, total=90, repeated=4, workers=1, provenance={})
    return {found.called(title)[0].stages[0].digest: held for title in titles}


def test_renderers__tick_what_was_verified(planned: Planner) -> None:
    found = planned(ROWS)
    held = verified(found, "b, seed 1", "noise")
    table = tabulate(found, standings(found, COMPLETE), held)
    ticked = {row.label: row.verified for row in (*table.rows, *table.references)}
    assert ticked == {"a": False, "b": True, "c": False, "noise": True}
    note = "✓ resumed bit for bit (kills: 6, steps compared: 120)."
    assert table.notes[-1] == note
    markdown, text = to_markdown(table), text_of(table, width=160)
    assert "| b ✓ | 3 |" in markdown
    assert "| noise ✓ | 3 |" in markdown
    assert markdown.count("✓") == text.count("✓") == 3
    assert note in text
    lines = csv.DictReader(io.StringIO(to_csv(table)))
    assert {line["row"] for line in lines if line["verified"] == "yes"} == {"b", "noise"}


def test_renderers__no_tick_without_a_certificate(planned: Planner) -> None:
    found = planned(ROWS)
    table = tabulate(found, standings(found, COMPLETE))
    assert "✓" not in to_markdown(table) + text_of(table)
    assert {line["verified"] for line in csv.DictReader(io.StringIO(to_csv(table)))} == {""}


def test_renderers__tick_a_cell_of_a_grid(planned: Planner) -> None:
    found = planned(GRID)
    numbers = full({"low / x": (1.0, 1.1, 1.2), "high / y": (2.0, 2.2, 2.1)})
    held = verified(found, "low / x", "high / y")
    table = tabulate(found, standings(found, numbers), held)
    markdown = to_markdown(table)
    assert "| low | 1.10 ± 0.10 ✓ |" in markdown
    assert "(published 80) ✓ |" in markdown
    assert "low / x ✓" in text_of(table, flat=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((82.952, 82.954, 82.956), "82.95 ± 0.00"),
        ((80.0, 83.0, 86.0), "83.0 ± 3.0"),
        ((60.0, 83.0, 99.0), "81 ± 20"),
        ((0.8301, 0.8311, 0.8322), "0.8311 ± 0.0011"),
        ((0.0, 0.0, 0.0), "0.00 ± 0.00"),
    ],
)
def test_digits__no_more_than_the_spread_allows(
    planned: Planner, values: tuple[float, float, float], expected: str
) -> None:
    found = planned(ROWS)
    text = to_markdown(tabulate(found, standings(found, full({"a": values}))))
    assert f"| a | 3 | {expected} |" in text


NUMBERS = re.compile(r"-?[0-9.]+ ± [0-9.]+|\[[-+][0-9.]+, [-+][0-9.]+\]|[-+][0-9.]+")
LONG = "the recipe of the paper, as its authors ran it"


def many(planned: Planner) -> dict[str, Table]:
    """Tables that are wide in one way or another."""
    rates = ", ".join(f"r{i}: {{rate: 0.{i}}}" for i in (1, 2))
    masks = ", ".join(f"column {i}: {{mask.ratio: 0.{i}}}" for i in range(1, 8))
    layout = "layout: {down: rate, across: mask}\n"
    wide = f"baseline: r1 / column 1\ngrid: {{rate: {{{rates}}}, mask: {{{masks}}}}}\n{layout}"
    found = {
        "rows": planned(ROWS),
        "long": planned(ROWS.replace("baseline: a", f"baseline: '{LONG}'")
                        .replace("{a:", f"{{'{LONG}':")),
        "word": planned(ROWS.replace(", c:", f", {'w' * 90}:")),
        "grid": planned(GRID),
        "wide": planned(HEAD + wide),
    }  # fmt: skip
    tables = {}
    for name, each in found.items():
        values = {row: (100.0 + 40 * i, 71.5, 127.3) for i, row in enumerate(labels_of(each))}
        tables[name] = tabulate(each, standings(each, full(values)))
    return tables


def labels_of(found: Plan) -> list[str]:
    return list(dict.fromkeys(cell.row for cell in found.cells))


def test_to_text__cuts_no_number_at_any_width(planned: Planner) -> None:
    for name, table in many(planned).items():
        for flat in (False, True):
            whole = set(NUMBERS.findall(text_of(table, flat=flat, width=400)))
            assert len(whole) > 3
            for width in (*range(40, 60), *range(60, 121, 5)):
                text = text_of(table, flat=flat, width=width)
                assert "…" not in text, (name, width)
                assert max(map(len, text.splitlines())) <= width
                assert whole <= set(NUMBERS.findall(text)), (name, width)


def test_to_text__a_grid_wider_than_the_terminal_is_drawn_flat(planned: Planner) -> None:
    table = many(planned)["wide"]
    grid = "score/accuracy ↑: rate"
    assert grid not in text_of(table, width=60)
    assert grid in text_of(table, width=160)


def test_to_text__long_labels_stay_readable(planned: Planner) -> None:
    text = text_of(many(planned)["long"], width=80)
    assert "the recipe" in text
    assert "minus baseline" in text


def test_to_text__an_ellipsis_marks_what_no_terminal_of_this_width_can_hold(
    planned: Planner,
) -> None:
    text = text_of(many(planned)["rows"], width=16)
    assert "…" in text


def test_renderers__a_difference_names_its_own_seeds(planned: Planner) -> None:
    found = planned(ROWS)
    numbers = {("a", 0): 80.0, ("a", 1): 80.5}
    ours = {("b", 0): 81.0, ("b", 1): 82.0, ("b", 2): 83.0, ("c", 1): 81.0, ("c", 2): 82.0}
    table = tabulate(found, standings(found, {**numbers, **ours}))
    markdown = to_markdown(table)
    assert "| b | 3 | 82.00 ± 1.00 | +1.25 (2 seeds) \\[" in markdown
    assert "| c | 2 of 3 | 81.50 ± 0.71 | +0.50 (1 seed) |" in markdown
    assert "(2 seeds)" in text_of(table)
    lines = [
        line
        for line in csv.DictReader(io.StringIO(to_csv(table)))
        if line["metric"] == "score/accuracy"
    ]
    assert [line["difference n"] for line in lines] == ["", "2", "1", ""]
