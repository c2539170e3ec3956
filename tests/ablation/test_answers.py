"""Claims against numbers: what decides, what does not, and how many seeds it would take."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from statistics import stdev

import pytest
from rich.console import Console

from ablation.answers import Answer, answer
from ablation.cells import Begun, Failed, Finished, Standing
from ablation.papers import Claim, Question, row_pairs
from ablation.plan import plan
from ablation.protocol import Direction, Place
from ablation.render import to_markdown, to_text
from ablation.spreadsheet import to_csv
from ablation.statistics import MOST_SEEDS, Difference, further_seeds, paired, verdict
from ablation.study import load_study
from ablation.table import Table, tabulate
from ablation.toy import ToyTrainer

QUESTION = Question(
    name="c", better="b", than="a", metric="score/accuracy", claim=Claim(better="b", than="a")
)


def asked(
    better: list[float], than: list[float], *, direction: Direction = "higher", missing: str = ""
) -> Answer:
    return answer(
        QUESTION,
        direction,
        better=dict(enumerate(better)),
        than=dict(enumerate(than)),
        missing=[missing] if missing else [],
    )


def test_answer__is_of_the_interval() -> None:
    better, than = [82.9, 82.95, 83.1], [82.4, 82.5, 82.57]
    assert asked(better, than).words == "reproduced"
    assert asked(than, better).words == "contradicted"
    assert asked(better, than, direction="lower").words == "contradicted"
    assert asked([82.5, 82.4, 82.6], than).finding == "undecided"


@pytest.mark.parametrize(
    ("better", "than", "words"),
    [
        ([2.0], [1.0], "undecided (at least 1 more seed needed)"),
        ([2.0, 3.0], [1.0, 2.0], "undecided (at least 1 more seed needed)"),
        ([1.0, 2.0], [0.0, 0.5], "undecided (1 more seed needed)"),
        ([1.0, 3.0], [0.0, 0.5], "undecided (2 more seeds needed)"),
        ([1.0, -1.001], [0.0, 0.0], f"undecided (over {MOST_SEEDS} more seeds needed)"),
        ([1.0, -1.0], [0.0, 0.0], f"undecided (over {MOST_SEEDS} more seeds needed)"),
    ],
)
def test_answer__says_how_many_seeds_it_takes(
    better: list[float], than: list[float], words: str
) -> None:
    assert asked(better, than).words == words


def test_answer__is_undecided_where_a_number_is_missing() -> None:
    found = asked([2.0, 2.1, 2.2], [1.0, 1.11, 1.2], missing="a, seed 3: train 50 %")
    assert found.words == "undecided (missing: a, seed 3: train 50 %)"
    assert found.difference is not None
    none = answer(QUESTION, "higher", better={}, than={}, missing=["x", "y", "z"])
    assert none.words == "undecided (missing: x and 2 more)"
    assert none.difference is None


def test_further_seeds__is_the_least_number_that_decides() -> None:
    found = paired({0: 1.0, 1: 1.2, 2: 0.1}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert verdict(found, "higher") == "undecided"
    more = further_seeds(found)
    assert more is not None

    def decided(count: int) -> bool:
        """Whether so many seeds with this mean and standard deviation decide."""
        apart = stdev([1.0, 1.2, 0.1]) * ((count - 1) / 2) ** 0.5
        values = {0: found.mean + apart, 1: found.mean - apart}
        values |= dict.fromkeys(range(2, count), found.mean)
        again = paired(values, dict.fromkeys(values, 0.0))
        assert again is not None
        return verdict(again, "higher") == "better"

    assert decided(3 + more)
    assert not decided(3 + more - 1)
    assert further_seeds(Difference(n=1, mean=1.0)) is None


@pytest.mark.parametrize(
    ("axes", "better", "than", "pairs"),
    [
        ([["a", "b"]], "a", "b", [("a", "b")]),
        ([["a", "b"]], "a", "a", []),
        ([["a", "b"]], "a", "c", []),
        ([["a", "b"], ["x", "y"]], "a", "b", [("a / x", "b / x"), ("a / y", "b / y")]),
        ([["a", "b"], ["x", "y"]], "y", "x", [("a / y", "a / x"), ("b / y", "b / x")]),
        ([["a", "b"], ["x", "y"]], "a / y", "b / x", [("a / y", "b / x")]),
        ([["a", "b"], ["x", "y"]], "a", "x", []),
        ([["a", "b"], ["x", "y"]], "a / y", "b", []),
        ([["a", "b"], ["b", "a"]], "a", "b", []),
        (
            [["a", "b"], ["x"], ["p", "q"]],
            "q",
            "p",
            [("a / x / q", "a / x / p"), ("b / x / q", "b / x / p")],
        ),
    ],
)
def test_row_pairs(
    axes: list[list[str]], better: str, than: str, pairs: list[tuple[str, str]]
) -> None:
    assert list(row_pairs(axes, better, than)) == pairs


STUDY = """\
name: toys
trainer: toy
preset: quick
seeds: [0, 1, 2]
evaluate: [score, probe]
metric: score/accuracy
baseline: a
rows: {a: {rate: 0.1}, b: {rate: 0.2}, c: {rate: 0.3}}
claims:
  faster: {better: b, than: a, says: more is better, source: Table 1, status: author}
  probed: {better: a, than: b, metric: probe/accuracy}
  open: {better: c, than: a}
"""
GRID = """\
name: toys
trainer: toy
preset: quick
seeds: [0, 1, 2]
evaluate: [score]
metric: score/accuracy
baseline: low / x
grid:
  rate: {low: {rate: 0.1}, high: {rate: 0.2}}
  mask: {x: {mask.ratio: 0.1}, y: {mask.ratio: 1}}
layout: {down: rate, across: mask}
claims:
  masked: {better: y, than: x}
"""


def table_of(
    text: str, folder: Path, numbers: Mapping[str, list[float]], **more: Standing
) -> Table:
    """The table of a study whose evaluations have the numbers of their row (probes: half)."""
    (folder / "x.yaml").write_text(text)
    study = load_study(folder / "x.yaml", lookup=lambda name: ToyTrainer())
    found = plan(study, ToyTrainer(), Place())
    stands: dict[str, Standing] = {}
    for cell in found.cells:
        for stage in cell:
            number = numbers[cell.row][cell.seed] if cell.row in numbers else 0.0
            half = {"train": 0.0, "score": number, "probe": number / 2}[stage.name]
            done: Standing = Finished({"loss": 0.1, "accuracy": half})
            stands[stage.digest] = more.get(f"{cell.row}{cell.seed}", done)
    return tabulate(found, stands)


NUMBERS = {"a": [82.4, 82.5, 82.57], "b": [82.9, 82.95, 83.1], "c": [82.5, 82.4, 82.6]}


def shown(table: Table) -> str:
    console = Console(width=160, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(to_text(table, width=160))
    return capture.get()


def test_table__answers_every_claim(tmp_path: Path) -> None:
    table = table_of(STUDY, tmp_path, NUMBERS)
    assert [answer.words for answer in table.answers[:2]] == ["reproduced", "contradicted"]
    assert table.answers[2].words.endswith("more seeds needed)")
    lines = [
        "faster: b better than a: reproduced, score/accuracy +0.49 [+0.39, +0.59], n = 3",
        "probed: a better than b: contradicted, probe/accuracy -0.25 [-0.30, -0.20], n = 3",
    ]
    text, markdown = shown(table), to_markdown(table).replace("\\", "")
    for line in lines:
        assert f"- {line}" in text
        assert f"- {line}" in markdown
    assert "Claim faster: Table 1 (author): more is better." in table.notes
    assert "### Claims" in markdown
    assert "faster" not in to_csv(table)


def test_table__says_which_number_a_claim_lacks(tmp_path: Path) -> None:
    table = table_of(STUDY, tmp_path, NUMBERS, b1=Begun(1, 2), a0=Failed("boom"))
    assert [answer.words for answer in table.answers] == [
        "undecided (missing: b, seed 1: train 50 % and 1 more)",
        "undecided (missing: a, seed 0: train failed: boom and 1 more)",
        "undecided (missing: a, seed 0: train failed: boom)",
    ]
    assert "### Claims" not in to_markdown(table_of(STUDY[: STUDY.index("claims")], tmp_path, {}))


def test_table__asks_a_claim_about_levels_for_every_other_level(tmp_path: Path) -> None:
    numbers = {
        "low / x": [1.0, 1.1, 1.2], "low / y": [2.0, 2.2, 2.1],
        "high / x": [2.0, 2.2, 2.1], "high / y": [1.0, 1.1, 1.2],
    }  # fmt: skip
    table = table_of(GRID, tmp_path, numbers)
    assert [(*answer.question.pair, answer.finding) for answer in table.answers] == [
        ("low / y", "low / x", "reproduced"),
        ("high / y", "high / x", "contradicted"),
    ]
    text = shown(table)
    assert "- masked: low / y better than low / x: reproduced" in text
    assert "- masked: high / y better than high / x: contradicted" in text


def test_table__shows_a_metric_of_training_that_a_claim_is_about(tmp_path: Path) -> None:
    study = STUDY.replace("metric: probe/accuracy", "metric: train/loss")
    table = table_of(study, tmp_path, NUMBERS, b0=Finished({"accuracy": 82.9}))
    names = [metric.name for metric in table.metrics]
    assert names == ["score/accuracy", "probe/accuracy", "train/loss"]
    assert [row.entries["train/loss"].n for row in table.rows] == [3, 2, 3]
    assert table.missing == (), "a method may have no such number"
    assert table.answers[1].words == "undecided (missing: b, seed 0: train finished without loss)"


PRINTED = """\
published:
  b: {score/accuracy: {value: 82.5, source: Table 1, status: second-hand}, probe/accuracy: 40.5}
  c: {value: 81, source: Table 2, status: author, note: other seeds}
printed:
  theirs: {value: 85.20, source: Table 1, status: second-hand}
  others: {probe/accuracy: {value: 41, note: read off a plot}}
"""


def test_table__numbers_of_papers_go_by_metric(tmp_path: Path) -> None:
    table = table_of(STUDY + PRINTED, tmp_path, NUMBERS)
    markdown = to_markdown(table)
    assert "| better | 82.5 second-hand | " in markdown
    assert "| probe/accuracy ↑ | probe/accuracy published |" in markdown
    assert "| 40.5 |" in markdown
    assert table.notes[0] == ("Published: Table 1 (second-hand); Table 2 (author).")
    assert table.notes[1:3] == ("c, published: other seeds.", "others, published: read off a plot.")
    rows = {(row["row"], row["metric"]): row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    assert rows["b", "probe/accuracy"]["published"] == "40.5"
    assert rows["c", "probe/accuracy"]["published"] == ""
    assert rows["c", "score/accuracy"]["note"] == "other seeds"


@pytest.mark.parametrize("study", [STUDY, GRID])
def test_table__rows_that_are_only_published_have_nothing_of_ours(
    study: str, tmp_path: Path
) -> None:
    printed = PRINTED[PRINTED.index("printed:") :]
    table = table_of(study.replace("[score]", "[score, probe]") + printed, tmp_path, {})
    markdown = to_markdown(table)
    section = markdown[markdown.index("### Published only") :].splitlines()[2:6]
    assert section == [
        "| row | score/accuracy ↑ | probe/accuracy ↑ |",
        "| --- | --- | --- |",
        "| theirs | 85.20 second-hand | — |",
        "| others | — | 41 |",
    ]
    text = shown(table)
    assert "Published only" in text
    assert "85.20" in text
    assert [row.label for row in table.printed] == ["theirs", "others"]
    lines = [
        row for row in csv.DictReader(io.StringIO(to_csv(table))) if row["kind"] == "published"
    ]
    assert [(row["row"], row["metric"], row["published"]) for row in lines] == [
        ("theirs", "score/accuracy", "85.20"),
        ("others", "probe/accuracy", "41"),
    ]
    for row in lines:
        assert row["n"] == row["mean"] == row["verdict"] == row["seed 0"] == ""


def test_table__a_grid_shows_the_numbers_of_every_metric(tmp_path: Path) -> None:
    study = GRID.replace("[score]", "[score, probe]")
    table = table_of(study, tmp_path, {"low / x": [14.0, 14.0, 14.0]})
    for text in (to_markdown(table), shown(table)):
        lines = text[text.index("probe/accuracy ↑: rate") :].splitlines()
        assert any("low" in line and "7.00" in line for line in lines[1:4])
    study += "published: {low / y: {probe/accuracy: {value: 7, status: second-hand}}}\n"
    assert "(published 7, second-hand)" in shown(table_of(study, tmp_path, {}))
