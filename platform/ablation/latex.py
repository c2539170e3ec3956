"""A table for a paper: LaTeX with booktabs (and amssymb, where rows were verified).

What is no number (missing cells, claims, notes) stands above and below as comments.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ablation.blocks import Cell, answer_lines, crossed, printed_lines, row_lines
from ablation.plain import plain
from ablation.table import TICK, Table

__all__ = ["to_latex"]

_WRITTEN: Final = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "—": "---",
    TICK: r"$\checkmark$",
    # A row must not begin with what its predecessor's end would take for an argument.
    "[": "{[}",
    "*": "{*}",
}


def to_latex(table: Table) -> str:
    """A tabular for each block of the table; what the intervals call better is bold."""
    blocks = crossed(table) if table.layout else [row_lines(table, table.rows)]
    if table.printed:
        blocks.append(printed_lines(table))
    if table.references:
        blocks.append(row_lines(table, table.references))
    lines = [*_comments([table.name, table.question])]
    for head, body in blocks:
        lines += _tabular(head, body)
    lines += _comments(f"Claim: {line}" for line in answer_lines(table))
    lines += _comments(f"Missing: {line}" for line in table.missing)
    return "\n".join([*lines, *_comments(table.notes)]) + "\n"


def _tabular(head: Sequence[str], body: Iterable[Sequence[Cell]]) -> Iterator[str]:
    yield f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    yield "\\toprule"
    yield f"{' & '.join(map(_escape, head))} \\\\"
    yield "\\midrule"
    for line in body:
        yield f"{' & '.join(map(_cell, line))} \\\\"
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _cell(cell: Cell) -> str:
    text = _escape(cell.text)
    return (f"\\textbf{{{text}}}" if cell.bold else text) + _escape(cell.aside)


def _comments(lines: Iterable[str]) -> Iterator[str]:
    return (f"% {plain(' '.join(line.split()))}" for line in lines if line)


def _escape(text: str) -> str:
    flat = plain(re.sub(r"\s+", " ", text))
    return "".join(_WRITTEN.get(mark, mark) for mark in flat)
