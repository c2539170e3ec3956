"""What a table holds, in lines of cells, for whoever draws them.

Digits: four significant ones of the mean, as papers print, but never more than two of the spread,
for what lies below the spread is noise.
"""

from collections.abc import Sequence
from math import floor, log10
from statistics import median
from typing import NamedTuple, TypeAlias

from ablation.answers import Answer
from ablation.protocol import Direction
from ablation.statistics import Difference
from ablation.table import TICK, Entry, Metric, Printed, Table, TableRow

__all__ = ["Cell", "Part", "answer_lines", "crossed", "printed_lines", "row_lines"]


class Cell(NamedTuple):
    """A number or a word; `bold` marks what the interval calls better, `aside` stays plain."""

    text: str
    bold: bool = False
    aside: str = ""


Part: TypeAlias = tuple[list[str], list[list[Cell]]]
"""A heading, and lines of cells."""
ARROW: dict[Direction, str] = {"higher": "↑", "lower": "↓"}
NONE = "—"


def row_lines(
    table: Table, rows: Sequence[TableRow], metrics: Sequence[Metric] | None = None
) -> Part:
    """Rows one below another: the first metric with all that the table knows, others beside it."""
    first, *others = table.metrics if metrics is None else metrics
    compared = first == table.metric and any(row.entries[first.name].difference for row in rows)
    told = {name for row in rows for name in row.published}
    head = ["row", "n", _title(first)]
    head += ["minus baseline", "verdict"] if compared else []
    head += _told(table, first) if first.name in told else []
    for metric in others:
        head += [_title(metric), *(_told(table, metric) if metric.name in told else [])]
    body = []
    for row in rows:
        entry, digits = row.entries[first.name], _digits(table, first)
        line = [
            Cell(row.label, aside=_tick(row)),
            Cell(_count(entry)),
            Cell(_mean(entry, digits), bold=entry.verdict == "better"),
        ]
        if compared:
            line.append(Cell(_difference(entry, digits)))
            line.append(Cell("baseline" if row.baseline else entry.verdict or NONE))
        if first.name in told:
            line.append(_published(row, first))
        for metric in others:
            line.append(_counted(row.entries[metric.name], _digits(table, metric)))
            if metric.name in told:
                line.append(_published(row, metric))
        body.append(line)
    return head, body


def _told(table: Table, metric: Metric) -> list[str]:
    return ["published" if metric == table.metric else f"{metric.name} published"]


def crossed(table: Table) -> list[Part]:
    """First axis down and second across, for each metric; then what that leaves out.

    These are the differences from the baseline, in the study's metric.
    """
    digits, body = _digits(table, table.metric), []
    for row in table.rows:
        entry = row.entries[table.metric.name]
        if entry.difference:
            verdict = Cell(entry.verdict or NONE)
            body.append([Cell(row.label), Cell(_difference(entry, digits)), verdict])
    differences = [_title(table.metric), "minus baseline", "verdict"], body
    return [
        *(_crossed(table, metric) for metric in table.metrics),
        *([differences] if body else []),
    ]


def _crossed(table: Table, metric: Metric) -> Part:
    digits = _digits(table, metric)
    across = list(dict.fromkeys(row.levels[1] for row in table.rows))
    lines: dict[str, list[Cell]] = {}
    for row in table.rows:
        cell, published = _counted(row.entries[metric.name], digits), ""
        if metric.name in row.published:
            published = f" (published {_published(row, metric).text})".replace("\n", ", ")
        cell = cell._replace(aside=cell.aside + published + _tick(row))
        lines.setdefault(row.levels[0], [Cell(row.levels[0])]).append(cell)
    return [f"{_title(metric)}: {table.axes[0]}", *across], list(lines.values())


def printed_lines(table: Table) -> Part:
    """The rows that are only published, with a column for each metric that one has."""
    told = {name for row in table.printed for name in row.published}
    metrics = [metric for metric in table.metrics if metric.name in told]
    body = [
        [Cell(row.label), *(_published(row, metric) for metric in metrics)] for row in table.printed
    ]
    return ["row", *(_title(metric) for metric in metrics)], body


def answer_lines(table: Table) -> list[str]:
    """A line for each two rows that a claim is about: what was asked, the answer, the numbers."""
    return [_answer(table, answer) for answer in table.answers]


def _answer(table: Table, answer: Answer) -> str:
    asked, difference = answer.question, answer.difference
    metric = next(metric for metric in table.metrics if metric.name == asked.metric)
    numbers = ""
    if difference is not None:
        interval = _signed(difference, _digits(table, metric)).replace("\n", " ")
        numbers = f", {metric.name} {interval}, n = {difference.n}"
    return f"{asked.name}: {asked.better} better than {asked.than}: {answer.words}{numbers}"


def _tick(row: TableRow) -> str:
    return f" {TICK}" if row.verified else ""


def _title(metric: Metric) -> str:
    return f"{metric.name} {ARROW[metric.direction]}"


def _digits(table: Table, metric: Metric) -> int:
    found = [row.entries[metric.name].summary for row in (*table.rows, *table.references)]
    means = [abs(summary.mean) for summary in found if summary]
    spreads = [summary.sd for summary in found if summary and summary.sd]
    largest = max(means, default=0.0)
    by_mean = 3 - floor(log10(largest)) if largest else 2
    by_spread = 1 - floor(log10(median(spreads)) + 1e-9) if spreads else by_mean
    return min(max(min(by_mean, by_spread), 0), 8)


def _count(entry: Entry) -> str:
    complete = entry.n == entry.expected
    return str(entry.n) if complete else f"{entry.n} of {entry.expected}"


def _mean(entry: Entry, digits: int) -> str:
    if entry.summary is None:
        return NONE
    spread = "" if entry.summary.sd is None else f" ± {entry.summary.sd:.{digits}f}"
    return f"{entry.summary.mean:.{digits}f}{spread}"


def _counted(entry: Entry, digits: int) -> Cell:
    """The mean, with its seeds where some are missing."""
    count = "" if entry.n == entry.expected else f" ({_count(entry)})"
    return Cell(_mean(entry, digits), bold=entry.verdict == "better", aside=count)


def _difference(entry: Entry, digits: int) -> str:
    """The mean difference, and under it, to keep a row narrow, its interval.

    It says on how many seeds it rests where these are fewer than the mean's.
    """
    difference = entry.difference
    if difference is None:
        return NONE
    seeds = f" ({difference.n} seed{'s' if difference.n > 1 else ''})"
    return _signed(difference, digits, aside=seeds if difference.n != entry.n else "")


def _signed(difference: Difference, digits: int, *, aside: str = "") -> str:
    mean = f"{difference.mean:+.{digits}f}{aside}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean}\n[{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def _published(row: TableRow | Printed, metric: Metric) -> Cell:
    number = row.published.get(metric.name)
    if number is None:
        return Cell(NONE)
    return Cell(f"{number.value}\n{number.status}" if number.status else str(number.value))
