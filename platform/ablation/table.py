"""The table of a study, computed from how its stages stand; a value that renderers only format.

No number without its seeds: each row says how many of how many it rests on, and what is missing
is named with its reason.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import assert_never

from ablation.answers import Answer, answer
from ablation.cells import Begun, Cell, Failed, Finished, PlannedStage, Standing, Stopped, Waiting
from ablation.certificate import Certificate
from ablation.papers import Published, Question, credits_of, unpublished
from ablation.plan import Plan
from ablation.protocol import Direction
from ablation.statistics import (
    CONFIDENCE,
    Difference,
    Summary,
    Verdict,
    paired,
    summarize,
    verdict,
)
from ablation.study import Study

__all__ = ["TICK", "Entry", "Metric", "Printed", "Result", "Table", "TableRow", "tabulate"]

TICK = "✓"
"""Beside a row that was verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A column: `stage/metric`, and which way is better."""

    name: str
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One seed's number and the digest of the stage that it is from, or why there is none yet."""

    seed: int
    digest: str
    value: float | None
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row's metric over its seeds, and how it compares with the baseline's."""

    results: tuple[Result, ...]
    summary: Summary | None
    difference: Difference | None = None
    verdict: Verdict | None = None

    @property
    def n(self) -> int:
        """Seeds with a number."""
        return 0 if self.summary is None else self.summary.n

    @property
    def expected(self) -> int:
        """Seeds that the study asks for."""
        return len(self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """A row, its level on every axis of a grid, and an entry for every metric by name.

    `published` holds what others printed for it, by metric.
    """

    label: str
    levels: tuple[str, ...]
    entries: Mapping[str, Entry]
    published: Mapping[str, Published] = field(default_factory=dict)
    baseline: bool = False
    reference: bool = False
    verified: bool = False
    """Whether a cell of it was killed on purpose and came to the same bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """A row that the study does not train: numbers that others printed, by metric."""

    label: str
    published: Mapping[str, Published]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A study's answer so far. `metrics[0]` is the study's own; `missing` names what is not there.

    `axes` names the axes of `levels`, none for plain rows; with `layout` the first runs down and
    the second across.
    """

    name: str
    question: str
    metrics: tuple[Metric, ...]
    baseline: str
    axes: tuple[str, ...]
    layout: bool
    rows: tuple[TableRow, ...]
    references: tuple[TableRow, ...]
    printed: tuple[Printed, ...]
    answers: tuple[Answer, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def metric(self) -> Metric:
        """The study's metric."""
        return self.metrics[0]


def tabulate(
    plan: Plan,
    standings: Mapping[str, Standing],
    certificates: Mapping[str, Certificate] = MappingProxyType({}),
) -> Table:
    """The table of a plan; a stage of which `standings` (by digest) says nothing is not started.

    `certificates` are those that the first stages of cells hold, by digest.
    """
    study, rows = plan.study, tuple(_rows(plan, standings, certificates))
    ours = {row.label: row for row in rows if not row.reference}
    answers = tuple(_answer(question, ours, study.metrics) for question in study.questions)
    # Not every method measures all that training may: plain MAE predicts no loss.
    needed = [m for m in study.metrics if m == study.metric or not m.startswith(f"{study.train}/")]
    return Table(
        name=study.name,
        question=study.question,
        metrics=tuple(Metric(name=name, direction=way) for name, way in study.metrics.items()),
        baseline=study.baseline,
        axes=_axes(study),
        layout=study.layout is not None,
        rows=tuple(ours.values()),
        references=tuple(row for row in rows if row.reference),
        printed=tuple(
            Printed(label=label, published=numbers) for label, numbers in study.printed.items()
        ),
        answers=answers,
        missing=tuple(line for row in rows for line in _missing(row, needed)),
        notes=(
            *credits_of({**study.published, **study.printed}, study.questions),
            *unpublished([row.label for row in study.rows], study.published),
            *_notes(rows, answers),
            *_verified(certificates.values()),
        ),
    )


def _axes(study: Study) -> tuple[str, ...]:
    return tuple(axis.name for axis in study.axes if axis.levels[0].trail[0] == "grid")


def _rows(
    plan: Plan, standings: Mapping[str, Standing], certificates: Mapping[str, Certificate]
) -> Iterator[TableRow]:
    """Rows, then references."""
    study, cells = plan.study, dict[tuple[bool, str], list[Cell]]()
    for cell in plan.cells:
        cells.setdefault((cell.reference, cell.row), []).append(cell)
    base = cells[False, study.baseline]
    levels = {row.label: row.levels if _axes(study) else () for row in study.rows}
    for (reference, label), row in cells.items():
        against = None if reference else base
        yield TableRow(
            label=label,
            levels=() if reference else levels[label],
            entries={
                name: _entry(Metric(name=name, direction=way), row, standings, base=against)
                for name, way in study.metrics.items()
            },
            published={} if reference else study.published.get(label, {}),
            baseline=not reference and label == study.baseline,
            reference=reference,
            verified=any(cell.stages[0].digest in certificates for cell in row),
        )


def _entry(
    metric: Metric,
    cells: list[Cell],
    standings: Mapping[str, Standing],
    *,
    base: list[Cell] | None,
) -> Entry:
    results = tuple(_result(metric.name, cell, standings) for cell in cells)
    ours = _by_seed(results)
    summary = summarize(list(ours.values()))
    if base is None or base is cells:
        return Entry(results=results, summary=summary)
    theirs = _by_seed(tuple(_result(metric.name, cell, standings) for cell in base))
    difference = paired(ours, theirs)
    found = None if difference is None else verdict(difference, metric.direction)
    return Entry(results=results, summary=summary, difference=difference, verdict=found)


def _answer(
    question: Question, rows: Mapping[str, TableRow], metrics: Mapping[str, Direction]
) -> Answer:
    pair = [(label, rows[label].entries[question.metric].results) for label in question.pair]
    better, than = (_by_seed(results) for _, results in pair)
    missing = [
        f"{label}, seed {result.seed}: {result.missing}"
        for label, results in pair
        for result in results
        if result.missing
    ]
    direction = metrics[question.metric]
    return answer(question, direction, better=better, than=than, missing=missing)


def _by_seed(results: tuple[Result, ...]) -> dict[int, float]:
    return {result.seed: result.value for result in results if result.value is not None}


def _result(metric: str, cell: Cell, standings: Mapping[str, Standing]) -> Result:
    """The number of one cell, or the first stage on the way to it that has not finished."""
    name, _, key = metric.partition("/")
    first = cell.stages[0]
    stage = next((stage for stage in cell.stages if stage.name == name), None)
    if stage is None:
        return Result(seed=cell.seed, digest=first.digest, value=None)
    ends = [standings.get(step.digest, Waiting()) for step in (first, stage)]
    at = 1 if any(isinstance(end, Finished) for end in ends) else 0
    value, missing = _read((first, stage)[at], key, ends[at])
    return Result(seed=cell.seed, digest=stage.digest, value=value, missing=missing)


def _read(stage: PlannedStage, key: str, standing: Standing) -> tuple[float | None, str]:
    """A stage's metric, or in words why there is none."""
    match standing:
        case Finished(metrics) if key not in metrics:
            return None, f"{stage.name} finished without {key}"
        case Finished(metrics) if not isfinite(metrics[key]):
            return None, f"{stage.name} finished with {key} = {metrics[key]}"
        case Finished(metrics):
            return metrics[key], ""
        case Failed(error):
            return None, f"{stage.name} failed: {' '.join(error.split())}"
        case Begun(step, total):
            return None, f"{stage.name} {100 * step // total if total else 0} %"
        case Waiting():
            return None, f"{stage.name} not started"
        case Stopped():
            return None, f"{stage.name} {standing.words}"
    assert_never(standing)


def _missing(row: TableRow, metrics: Sequence[str]) -> Iterator[str]:
    """What keeps a row from being complete in these metrics, each reason of a seed once."""
    prefix = "reference " if row.reference else ""
    reasons = (
        (result.seed, result.missing)
        for metric in metrics
        for result in row.entries[metric].results
        if result.missing
    )
    for seed, reason in dict.fromkeys(sorted(reasons, key=lambda pair: pair[0])):
        yield f"{prefix}{row.label}, seed {seed}: {reason}"


def _notes(rows: Sequence[TableRow], answers: Sequence[Answer]) -> tuple[str, ...]:
    """What a reader must know to read the differences."""
    entries = [entry for row in rows for entry in row.entries.values()]
    found = *(entry.difference for entry in entries), *(answer.difference for answer in answers)
    differences = [difference for difference in found if difference is not None]
    notes = []
    if any(difference.low is not None for difference in differences):
        notes.append(
            f"Differences are paired by seed, with {CONFIDENCE:.0%} intervals by Student's t, each "
            f"by itself: no correction for {len(differences)} comparisons."
        )
    if any(difference.n == 1 for difference in differences):
        notes.append("A difference of one seed has no interval and decides nothing.")
    if any(difference.n > 1 and difference.low is None for difference in differences):
        notes.append("A difference that is the same for every seed has no interval.")
    return tuple(notes)


def _verified(certificates: Collection[Certificate]) -> Iterator[str]:
    """What the ticks rest on."""
    if certificates:
        kills, steps = sum(c.kills for c in certificates), sum(c.steps for c in certificates)
        yield f"{TICK} resumed bit for bit (kills: {kills}, steps compared: {steps})."
