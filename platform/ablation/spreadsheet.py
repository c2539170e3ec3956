"""Tables for a spreadsheet: a line per row and metric, in full precision."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TypeAlias

from ablation.plain import plain
from ablation.table import Entry, Metric, Printed, Table, TableRow

__all__ = ["to_csv"]

Value: TypeAlias = str | float | Decimal | None
Column: TypeAlias = tuple[str, str]
"""What a column is about (nothing, an axis or a seed), and its title."""

_FORMULA = re.compile(r"(?:^|(?<=[;\t\n]))(?=[=+\-@\t\uff1d\uff0b\uff0d\uff20])")
"""Where a formula would begin, also in full width: at once, or behind what separates fields
elsewhere."""
_HEAD = (
    *("study", "row", "kind", "metric", "better", "n", "expected", "mean", "sd"),
    *("difference", "difference n", "low", "high", "verdict"),
    *("published", "source", "status", "note", "verified"),
)


def to_csv(*tables: Table) -> str:
    """Tables below one another under one head, with each seed's number, stage and lack.

    Text that a spreadsheet would run as a formula is quoted with an apostrophe.
    """
    records = [record for table in tables for record in _records(table)]
    columns: list[Column] = [
        *(("", title) for title in _HEAD),
        *dict.fromkeys(("axis", axis) for table in tables for axis in table.axes),
        *dict.fromkeys(key for record in records for key in record if key[0] == "seed"),
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_inert(title) for _, title in columns])
    for record in records:
        writer.writerow([_inert(record.get(column)) for column in columns])
    return out.getvalue()


def _records(table: Table) -> Iterator[Mapping[Column, Value]]:
    for row in (*table.rows, *table.references):
        for metric in table.metrics:
            yield {
                **_named(_of(table, row, metric, "reference" if row.reference else "row")),
                **_named(_measured(row.entries[metric.name])),
                ("", "verified"): "yes" if row.verified else None,
                **{("axis", a): level for a, level in zip(table.axes, row.levels, strict=False)},
                **{
                    ("seed", f"seed {result.seed}{what}"): value
                    for result in row.entries[metric.name].results
                    for what, value in (
                        ("", result.value),
                        (" stage", result.digest),
                        (" missing", result.missing),
                    )
                },
            }
    for printed in table.printed:
        for metric in table.metrics:
            if metric.name in printed.published:
                yield _named(_of(table, printed, metric, "published"))


def _named(values: Mapping[str, Value]) -> dict[Column, Value]:
    return {("", title): value for title, value in values.items()}


def _of(table: Table, row: TableRow | Printed, metric: Metric, kind: str) -> dict[str, Value]:
    """What a line is about, and what others printed there."""
    names: dict[str, Value] = {"study": table.name, "row": row.label, "kind": kind}
    names |= {"metric": metric.name, "better": metric.direction}
    number = row.published.get(metric.name)
    if number is None:
        return names
    return {
        **names,
        "published": number.value,
        "source": number.source,
        "status": number.status,
        "note": number.note,
    }


def _measured(entry: Entry) -> dict[str, Value]:
    found: dict[str, Value] = {"n": entry.n, "expected": entry.expected}
    if entry.summary:
        found |= {"mean": entry.summary.mean, "sd": entry.summary.sd}
    if difference := entry.difference:
        found |= {"difference": difference.mean, "difference n": difference.n}
        found |= {"low": difference.low, "high": difference.high, "verdict": entry.verdict}
    return found


def _inert(value: Value) -> Value:
    return _FORMULA.sub("'", plain(value)) if isinstance(value, str) else value
