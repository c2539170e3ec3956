"""The journal of a stage: the metrics of its steps, as JSON lines that give back every float.

JSON has no word for nan and the infinities, so those three are written as strings.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ablation.typed import Count, Moment, loads, typed

__all__ = ["Record", "metrics_from_json", "metrics_to_json", "parse_lines", "to_lines"]


@dataclass(frozen=True, slots=True)
class Record:
    """The metrics of one step and when they were measured, in milliseconds since 1970 (UTC)."""

    step: Count
    time_ms: Moment
    metrics: Mapping[str, float]


def metrics_to_json(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Metrics as values that strict JSON can hold; Python's repr makes floats round-trip."""
    floats = {name: float(value) for name, value in metrics.items()}
    return {name: v if math.isfinite(v) else str(v) for name, v in floats.items()}


def metrics_from_json(metrics: Mapping[str, float | str]) -> dict[str, float]:
    """The inverse of `metrics_to_json`; raises ValueError for anything else."""
    return typed(dict[str, float], metrics)


def to_lines(records: Iterable[Record]) -> bytes:
    """Records as JSON lines."""
    rows = (
        {"step": r.step, "time_ms": r.time_ms, "metrics": metrics_to_json(r.metrics)}
        for r in records
    )
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def parse_lines(lines: bytes) -> tuple[Record, ...]:
    """The inverse of `to_lines`.

    Raises ValueError where a line is not a record.
    """
    return typed(tuple[Record, ...], [loads(line) for line in lines.splitlines()])
