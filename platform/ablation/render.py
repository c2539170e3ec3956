"""A table for the terminal and for a document.

Sections below the rows (published only, references, claims, missing) are there where they are not
empty.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ablation.blocks import Cell, Part, answer_lines, crossed, printed_lines, row_lines
from ablation.latex import to_latex
from ablation.plain import plain
from ablation.spreadsheet import to_csv
from ablation.table import Table, TableRow

__all__ = ["to_markdown", "to_text", "written"]


LABEL_WIDTH = 12
"""Labels may fold where they are longer, in terminal columns."""
GAP = 2
"""Between two columns: the padding of one and the divider of the box."""


def to_text(table: Table, *, width: int = 80, flat: bool = False) -> RenderableType:
    """For a terminal of `width` columns; a grid is drawn in two dimensions unless `flat`.

    What does not fit goes in blocks below one another, a grid that does not fit is drawn flat. A
    number is never cut; only where a column alone is wider than the terminal an ellipsis says so.
    """
    blocks: list[RenderableType] = [_said(table.name, style="bold")]
    if table.question:
        blocks.append(_said(table.question))
    grids = crossed(table) if table.layout and not flat else []
    if not grids or max(map(_width, grids)) > width:
        grids = _fitted(table, table.rows, width)
    blocks += [_draw(*part) for part in grids]
    if table.printed:
        blocks.append(Text("Published only", style="bold"))
        blocks += [_draw(*part) for part in _blocks(printed_lines(table), width)]
    if table.references:
        blocks.append(Text("References", style="bold"))
        blocks += [_draw(*part) for part in _fitted(table, table.references, width)]
    for title, lines in (("Claims", answer_lines(table)), ("Missing", table.missing)):
        if lines:
            blocks.append(Text(title, style="bold"))
            blocks += [_said(f"- {line}") for line in lines]
    blocks += [_said(note, style="dim") for note in table.notes]
    return Group(*blocks)


def to_markdown(table: Table, *, flat: bool = False) -> str:
    """For a document (GitHub's tables); what the intervals call better is bold."""
    parts = [f"## {_escape(table.name)}"]
    if table.question:
        parts.append(_line(table.question))
    whole = not table.layout or flat
    parts += [_pipes(*p) for p in ([row_lines(table, table.rows)] if whole else crossed(table))]
    if table.printed:
        parts += ["### Published only", _pipes(*printed_lines(table))]
    if table.references:
        parts += ["### References", _pipes(*row_lines(table, table.references))]
    for title, lines in (("Claims", answer_lines(table)), ("Missing", table.missing)):
        if lines:
            parts += [f"### {title}", "\n".join(f"- {_line(line)}" for line in lines)]
    parts += [_line(note) for note in table.notes]
    return "\n\n".join(parts) + "\n"


def written(tables: Sequence[Table], form: str) -> str:
    """Tables for a file: `md`, `latex`, or one `csv` of them all."""
    if form == "csv":
        return to_csv(*tables)
    return "\n".join(map({"md": to_markdown, "latex": to_latex}[form], tables))


def _fitted(table: Table, rows: Sequence[TableRow], width: int) -> list[Part]:
    """One block where all metrics fit beside one another, else the others in blocks of theirs."""
    whole = row_lines(table, rows)
    if _width(whole, folded=False) <= width:
        return [whole]
    parts = [row_lines(table, rows, table.metrics[:1])]
    if len(table.metrics) > 1:
        parts.append(row_lines(table, rows, table.metrics[1:]))
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
    grid.add_column(_said(head[0]), overflow="fold")
    for title in head[1:]:
        grid.add_column(_said(title), overflow="ellipsis", no_wrap=True)
    for line in body:
        grid.add_row(*map(_drawn, line))
    return grid


def _drawn(cell: Cell) -> Text:
    return Text.assemble((plain(cell.text), "bold" if cell.bold else ""), plain(cell.aside))


def _said(text: str, style: str = "") -> Text:
    return Text(plain(text), style)


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
    flat = plain(re.sub(r"\s+", " ", text))
    return re.sub(r"([\\|*_`<\[\]&~$#])", r"\\\1", flat)


def _line(text: str) -> str:
    """The same for a line of its own, which must not begin a list, a heading or a quote."""
    return re.sub(r"^( *\d*)(?=[-+.)](?: |$)|--|=|>)", r"\1\\", _escape(text))
