"""The points of a stage's curves, from the ledger, as a tracker is told of them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ablation.cells import Finished, PlannedStage, Standing
from ablation.journal import Record
from ablation.ledger import Ledger
from ablation.manifest import DamageError
from ablation.typed import Moment, typed

__all__ = ["Point", "curves", "journal", "points"]

_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of the curve `stage/metric`, with the ledger's time in milliseconds."""

    key: str
    value: float
    time_ms: int
    step: int


def curves(ledger: Ledger, stage: PlannedStage, standing: Standing) -> list[Point]:
    """All points of a stage: its journal's, and of its final metrics those not among them."""
    told = list(points(stage, journal(ledger, stage.digest)))
    if not isinstance(standing, Finished):
        return told
    time_ms = _created_ms(ledger.stage(stage.digest).description() or {})
    keys = {point.key for point in told}
    final = points(stage, [Record(0, time_ms, standing.metrics)])
    return [*told, *(point for point in final if point.key not in keys)]


def _created_ms(description: Mapping[str, Any]) -> int:
    """When a stage was described, 0 where that cannot be read any more."""
    try:
        return typed(Moment, description["created"]["time_ms"])
    except (KeyError, TypeError, ValueError):
        return 0


def journal(ledger: Ledger, digest: str) -> Sequence[Record]:
    """The committed record of a stage, none where that is damaged, which is told of."""
    try:
        return ledger.journal(digest)
    except DamageError as error:
        _log.warning("MLflow is told nothing of a journal that is damaged: %s", error)
        return ()


def points(stage: PlannedStage, records: Iterable[Record]) -> Iterable[Point]:
    """What records of a stage say."""
    for record in records:
        for name, value in record.metrics.items():
            yield Point(f"{stage.name}/{name}", value, record.time_ms, record.step)
