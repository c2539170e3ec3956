"""The rows of a study: the levels of its axes multiplied, each a full configuration of the trainer.

Plain `rows` are a grid of one axis. A level must change something that its axis is about, and no
two rows may be the same configuration: then a table's rows are what their labels say.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod
from typing import Any

from ablation.identity import canonical
from ablation.problems import Problem
from ablation.settings import Fault, flatten, layer, mend, settle, unknown
from ablation.studyfile import StudyFile
from ablation.yamlfile import Document, Trail

__all__ = [
    "Axis",
    "Base",
    "Level",
    "Row",
    "axes_of",
    "check_rows",
    "known",
    "locate",
    "multiply",
    "touches",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A labelled value of an axis: its settings by full dotted path, and where they stand."""

    label: str
    settings: Mapping[str, Any]
    trail: Trail


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a study varies."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: its label, a level of every axis, and the configuration.

    `left_out` are settings that `config` had to go without; a study's rows have none.
    """

    label: str
    levels: tuple[str, ...]
    config: Any
    trails: tuple[Trail, ...]
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What all rows have in common: preset and `set`, flat, and where its faults are shown."""

    kind: type[object]
    settings: Mapping[str, Any]
    faults: Sequence[Fault] = ()
    config: Any = None
    complete: bool = True
    """False where the preset is unknown: then only what a row itself says can be judged."""
    left_out: frozenset[str] = frozenset()
    """Settings that are missing in `settings`, for what they say is wrong or unknown."""


def axes_of(file: StudyFile, kind: type[object]) -> tuple[Axis, ...]:
    """The axes of a study file; the one that a layout runs down comes first."""
    grid: dict[str, Any] = {} if file.grid is None else dict(file.grid)
    if file.layout is not None:
        down = file.layout.down
        grid = {name: grid[name] for name in sorted(grid, key=lambda name: name != down)}
    found: dict[tuple[str, ...], dict[str, Any]]
    found = {("grid", name): levels for name, levels in grid.items()}
    found = found or {("rows",): file.rows or {}}
    return tuple(
        Axis(
            name=trail[-1],
            levels=tuple(
                Level(label=label, settings=flatten(kind, settings), trail=(*trail, label))
                for label, settings in levels.items()
            ),
        )
        for trail, levels in found.items()
    )


def locate(document: Document, trail: Trail, path: str) -> Trail | None:
    """Where the settings at `trail` set a dotted path, written in one piece or nested."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        key = (*trail, ".".join(parts[:length]))
        if key in document.lines:
            rest = ".".join(parts[length:])
            deeper = locate(document, key, rest) if rest else None
            # A scalar above a path speaks for all below it: `data: null`.
            if deeper or not rest or key in document.words:
                return deeper or key
    return None


def known(
    document: Document, kind: type[object], settings: Mapping[str, Any], *trail: str | int
) -> tuple[dict[str, Any], list[Problem]]:
    """Settings by full path as far as they exist, and a problem for each that does not."""
    flat = flatten(kind, settings)
    wrong = unknown(kind, flat)
    problems = [
        document.problem(str(fault), *(locate(document, trail, fault.path) or trail))
        for fault in wrong
    ]
    gone = {fault.path for fault in wrong}
    return {path: value for path, value in flat.items() if path not in gone}, problems


def multiply(
    document: Document, base: Base, axes: Sequence[Axis]
) -> tuple[tuple[Row, ...], tuple[Row, ...], list[Problem]]:
    """Every combination of levels as a row; those that cannot be are problems instead.

    Of these the second part has what is left without the settings that are wrong.
    """
    problems = [
        document.problem(
            str(fault),
            *(locate(document, level.trail, fault.path) or level.trail),
        )
        for axis in axes
        for level in axis.levels
        for fault in unknown(base.kind, level.settings)
    ]
    rows, partial = [], []
    for levels in product(*(axis.levels for axis in axes)):
        own = [_known(base.kind, level.settings) for level in levels]
        flat = layer(base.settings, *own)
        config, faults = settle(base.kind, flat)
        given = {path for settings in own for path in settings}
        row = Row(
            label=" / ".join(level.label for level in levels),
            levels=tuple(level.label for level in levels),
            config=config,
            trails=tuple(level.trail for level in levels),
            left_out=frozenset(path for path in base.left_out if not touches(path, given)),
        )
        problems += [problem for fault in faults for problem in _blame(document, base, row, fault)]
        if not faults and own == [level.settings for level in levels]:
            rows.append(row)
        elif mended := mend(base.kind, flat, faults):
            asked = {path for level in levels for path in level.settings}
            left_out = row.left_out | mended[1] | (asked - given)
            partial.append(replace(row, config=mended[0], left_out=left_out))
    return tuple(rows), tuple(partial), problems


def touches(path: str, others: Set[str]) -> bool:
    """Whether one of `others` sets a path, something in it or something around it."""
    return any(
        f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}.") for other in others
    )


def _known(kind: type[object], settings: Mapping[str, Any]) -> dict[str, Any]:
    wrong = {fault.path for fault in unknown(kind, settings)}
    return {path: value for path, value in settings.items() if path not in wrong}


def _blame(document: Document, base: Base, row: Row, fault: Fault) -> Iterator[Problem]:
    """The problem of a row, at what brought it about: the row, the base, or the two together."""
    places = (locate(document, trail, fault.path) for trail in reversed(row.trails))
    if own := next((place for place in places if place), None):
        yield document.problem(str(fault), *own)
    elif fault in base.faults:
        place = locate(document, ("set",), fault.path) or ("preset",)
        yield document.problem(str(fault), *place)
    elif base.complete:
        yield document.problem(f"row {row.label!r}: {fault}", *row.trails[-1])


def check_rows(document: Document, axes: Sequence[Axis], rows: Sequence[Row]) -> Iterator[Problem]:
    """What keeps a table's labels from being true: levels that change nothing, equal rows."""
    for one, other in combinations(axes, 2):
        shared = _paths(one) & _paths(other)
        for path in sorted(shared):
            sentence = f"{path} must be set by one axis, got {one.name!r} and {other.name!r}."
            yield document.problem(sentence, "grid", other.name)
    idle = [
        level for axis in axes for level in axis.levels if _changes_nothing(axes, axis, level, rows)
    ]
    for level in idle:
        noun = "row" if level.trail[0] == "rows" else "level"
        yield document.problem(
            f"{noun} {level.label!r} changes nothing. Name the setting in which it differs "
            "from the others; where they change it, a level may restate the preset's value.",
            *level.trail,
        )
    first: dict[str, Row] = {}
    still = {level.trail for level in idle}
    for row in rows:
        twin = first.setdefault(canonical(row.config), row)
        if twin is not row and not still & {*row.trails, *twin.trails}:
            yield document.problem(
                f"row {row.label!r} must differ from row {twin.label!r}, but the two are one "
                "configuration. Change a setting or drop a row.",
                *row.trails[-1],
            )


def _paths(axis: Axis) -> set[str]:
    return {path for level in axis.levels for path in level.settings}


def _changes_nothing(axes: Sequence[Axis], axis: Axis, level: Level, rows: Sequence[Row]) -> bool:
    """Whether no setting that a level names takes another value at another level of its axis."""
    if not level.settings:
        return True
    if len(axis.levels) == 1 or len(rows) < prod(len(axis.levels) for axis in axes):
        return False
    at = axes.index(axis)
    beside: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        beside.setdefault(row.levels[:at] + row.levels[at + 1 :], []).append(row.config)
    return all(
        len({canonical(_value(config, path)) for config in configs}) == 1
        for configs in beside.values()
        for path in level.settings
    )


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config
