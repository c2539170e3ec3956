"""Tables: every number with its seeds, every absence with its reason, and three ways to draw it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ablation.cells import Begun, Failed, Finished, Standing, Waiting
from ablation.plan import Plan, plan
from ablation.render import to_markdown
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
        return plan(study, ToyTrainer(), {})

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
    assert rows["b"].published is not None
    assert table.notes == (
        "Published: Table 1 (second-hand).",
        "Differences are paired by seed, with 95% intervals by Student's t, each by itself: "
        "no correction for 2 comparisons with the baseline.",
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
    assert table.notes == ("Published: Table 1 (second-hand).",)
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
