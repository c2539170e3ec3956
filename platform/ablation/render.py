"""A table for the terminal, for a document and for a spreadsheet.

Digits: four significant ones of the mean, as papers print, but never more than two of the spread,
for what lies below the spread is noise. CSV holds every digit.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from math import floor, log10
from statistics import median
from typing import NamedTuple, TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ablation.protocol import Direction
from ablation.table import TICK, Entry, Metric, Table, TableRow

__all__ = ["to_csv", "to_markdown", "to_text"]


class Cell(NamedTuple):
    """A number or a word; `bold` marks what the interval calls better, `aside` stays plain."""

    text: str
    bold: bool = False
    aside: str = ""


Part: TypeAlias = tuple[list[str], list[list[Cell]]]
"""A heading, and lines of cells."""
ARROW: dict[Direction, str] = {"higher": "↑", "lower": "↓"}
NONE = "—"
LABEL_WIDTH = 12
"""Labels may fold where they are longer, in terminal columns."""
GAP = 2
"""Between two columns: the padding of one and the divider of the box."""


def to_text(table: Table, *, width: int = 80, flat: bool = False) -> RenderableType:
    """For a terminal of `width` columns; a grid is drawn in two dimensions unless `flat`.

    What does not fit goes in blocks below one another, a grid that does not fit is drawn flat. A
    number is never cut; only where a column alone is wider than the terminal an ellipsis says so.
    """
    blocks: list[RenderableType] = [Text(table.name, style="bold")]
    if table.question:
        blocks.append(Text(table.question))
    crossed = _crossed(table) if table.layout and not flat else None
    if crossed is not None and _width(crossed) <= width:
        blocks.append(_draw(*crossed))
    else:
        blocks += [_draw(*part) for part in _fitted(table, table.rows, width)]
    if table.references:
        blocks.append(Text("References", style="bold"))
        blocks += [_draw(*part) for part in _fitted(table, table.references, width)]
    if table.missing:
        blocks.append(Text("Missing", style="bold"))
        blocks += [Text(f"- {line}") for line in table.missing]
    blocks += [Text(note, style="dim") for note in table.notes]
    return Group(*blocks)


def to_markdown(table: Table, *, flat: bool = False) -> str:
    """For a document (GitHub's tables); what the intervals call better is bold."""
    parts = [f"## {_escape(table.name)}"]
    if table.question:
        parts.append(_escape(table.question))
    parts.append(
        _pipes(*(_crossed(table) if table.layout and not flat else _lines(table, table.rows)))
    )
    if table.references:
        parts += ["### References", _pipes(*_lines(table, table.references))]
    if table.missing:
        parts += ["### Missing", "\n".join(f"- {_escape(line)}" for line in table.missing)]
    parts += [_escape(note) for note in table.notes]
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """For a spreadsheet: a line per row and metric, in full precision, with each seed's number.

    Text that a spreadsheet would run as a formula is quoted with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [*table.rows, *table.references]
    seeds = [result.seed for result in rows[0].entries[table.metric.name].results]
    per_seed = [f"seed {seed}{what}" for seed in seeds for what in ("", " stage", " missing")]
    writer.writerow([*CSV_HEAD, *map(_inert, table.axes), *per_seed])
    for row in rows:
        for metric in table.metrics:
            writer.writerow([_inert(value) for value in _record(table, row, metric)])
    return out.getvalue()


CSV_HEAD = (
    *("study", "row", "kind", "metric", "better", "n", "expected", "mean", "sd"),
    *("difference", "difference n", "low", "high", "verdict"),
    *("published", "source", "status", "verified"),
)


def _record(table: Table, row: TableRow, metric: Metric) -> list[str | float | None]:
    entry = row.entries[metric.name]
    summary, difference = entry.summary, entry.difference
    published = row.published if metric == table.metric else None
    return [
        *(table.name, row.label, "reference" if row.reference else "row"),
        *(metric.name, metric.direction, entry.n, entry.expected),
        *((summary.mean, summary.sd) if summary else (None, None)),
        *((difference.mean, difference.n) if difference else (None,) * 2),
        *((difference.low, difference.high) if difference else (None,) * 2),
        entry.verdict,
        *((published.value, published.source, published.status) if published else (None,) * 3),
        "yes" if row.verified else None,
        *(row.levels or (None,) * len(table.axes)),
        *(x for r in entry.results for x in (r.value, r.digest, r.missing)),
    ]


def _inert(value: str | float | None) -> str | float | None:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _lines(table: Table, rows: Sequence[TableRow], metrics: Sequence[Metric] | None = None) -> Part:
    """Rows one below another: the first metric in full, the others beside it."""
    first, *others = table.metrics if metrics is None else metrics
    full = first == table.metric
    compared = full and any(row.entries[first.name].difference for row in rows)
    published = full and any(row.published for row in rows)
    digits = {metric.name: _digits(table, metric) for metric in table.metrics}
    head = ["row", "n", _title(first)]
    head += ["minus baseline", "verdict"] if compared else []
    head += ["published"] if published else []
    head += [_title(metric) for metric in others]
    body = []
    for row in rows:
        entry = row.entries[first.name]
        line = [
            Cell(row.label, aside=_tick(row)),
            Cell(_count(entry)),
            Cell(_mean(entry, digits[first.name]), bold=entry.verdict == "better"),
        ]
        if compared:
            line.append(Cell(_difference(entry, digits[first.name])))
            line.append(Cell("baseline" if row.baseline else entry.verdict or NONE))
        if published:
            line.append(Cell(_published(row)))
        for metric in others:
            other = row.entries[metric.name]
            line.append(_counted(other, digits[metric.name]))
        body.append(line)
    return head, body


def _crossed(table: Table) -> Part:
    """The study's metric, first axis down and second across."""
    digits = _digits(table, table.metric)
    across = list(dict.fromkeys(row.levels[1] for row in table.rows))
    lines: dict[str, list[Cell]] = {}
    for row in table.rows:
        cell = _counted(row.entries[table.metric.name], digits)
        published = f" (published {_published(row)})".replace("\n", ", ") if row.published else ""
        cell = cell._replace(aside=cell.aside + published + _tick(row))
        lines.setdefault(row.levels[0], [Cell(row.levels[0])]).append(cell)
    return [f"{_title(table.metric)}: {table.axes[0]}", *across], list(lines.values())


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
    mean = f"{difference.mean:+.{digits}f}"
    if difference.n != entry.n:
        mean += f" ({difference.n} seed{'s' if difference.n > 1 else ''})"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean}\n[{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def _published(row: TableRow) -> str:
    if row.published is None:
        return NONE
    status = f"\n{row.published.status}" if row.published.status else ""
    return f"{row.published.value}{status}"


def _fitted(table: Table, rows: Sequence[TableRow], width: int) -> list[Part]:
    """One block where all metrics fit beside one another, else the others in blocks of theirs."""
    whole = _lines(table, rows)
    if _width(whole, folded=False) <= width:
        return [whole]
    parts = [_lines(table, rows, table.metrics[:1])]
    if len(table.metrics) > 1:
        parts.append(_lines(table, rows, table.metrics[1:]))
    return [block for part in parts for block in _blocks(part, width)]


def _blocks(part: Part, width: int) -> Iterator[Part]:
    """A part in as many blocks as its width asks for, each with the labels first."""
    kept = [0]
    for at in range(1, len(part[0])):
        if len(kept) > 1 and _width(_columns(part, [*kept, at])) > width:
            yield _columns(part, kept)
            kept = [0]
        kept.append(at)
    yield _columns(part, kept)


def _columns(part: Part, kept: Sequence[int]) -> Part:
    head, body = part
    return [head[at] for at in kept], [[line[at] for at in kept] for line in body]


def _width(part: Part, *, folded: bool = True) -> int:
    """Columns of a terminal that a part needs, with its labels folded or in one line each."""
    head, body = part
    columns = [
        [title, *(f"{line[at].text}{line[at].aside}" for line in body)]
        for at, title in enumerate(head)
    ]
    labels, *others = (
        max(cell_len(line) for text in column for line in text.split("\n")) for column in columns
    )
    return sum(others) + GAP * len(others) + (min(labels, LABEL_WIDTH) if folded else labels)


def _draw(head: Sequence[str], body: Iterable[Sequence[Cell]]) -> Grid:
    """A block of which only the labels fold."""
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    grid.add_column(Text(head[0]), overflow="fold")
    for title in head[1:]:
        grid.add_column(Text(title), overflow="ellipsis", no_wrap=True)
    for line in body:
        grid.add_row(*(Text.assemble((c.text, "bold" if c.bold else ""), c.aside) for c in line))
    return grid


def _pipes(head: Sequence[str], body: Iterable[Sequence[Cell]]) -> str:
    lines = [[_escape(title) for title in head], ["---"] * len(head)]
    for line in body:
        marks = ["**" if cell.bold else "" for cell in line]
        lines.append(
            [f"{m}{_escape(c.text)}{m}{_escape(c.aside)}" for c, m in zip(line, marks, strict=True)]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Text that says the same in Markdown, on one line."""
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", re.sub(r"\s+", " ", text))
