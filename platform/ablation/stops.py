"""Cells of a study that a person has stopped: a mark beside the study, which its drivers heed.

A study's cells are marked, not stages: another study that wants the same stage goes on with it.
Whoever runs or submits the study anew takes the marks away; a driver that is begun again leaves
them there.
"""

import json
import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from functools import cache

from ablation.cells import Begun, Cell, Failed, Finished, Standing, Stopped
from ablation.ledger import Ledger
from ablation.plan import Plan
from ablation.storage import StorageError
from ablation.typed import loads, typed

__all__ = [
    "as_stopped",
    "heeding",
    "standings_of",
    "stop_cells",
    "stopped_heads",
    "stopped_titles",
    "want_all",
]

_FILE = "stopped.json"
_LOOK_EVERY_S = 5.0

_log = logging.getLogger(__name__)


def stop_cells(ledger: Ledger, study: str, titles: Iterable[str]) -> None:
    """Mark cells of a study, beside those that are marked already."""
    _write(ledger, study, stopped_titles(ledger, study) | {*titles})


def want_all(ledger: Ledger, study: str) -> None:
    """Take the marks of a study away."""
    if stopped_titles(ledger, study):
        _write(ledger, study, ())


def _write(ledger: Ledger, study: str, titles: Collection[str]) -> None:
    ledger.write_study(study, {_FILE: json.dumps(sorted(titles))})


def stopped_titles(ledger: Ledger, study: str) -> frozenset[str]:
    """The titles of a study's cells that are marked."""
    try:
        return typed(frozenset[str], loads(ledger.read_study(study, _FILE) or "[]"))
    except ValueError as error:
        _warn_once(f"{ledger.storage.uri}/studies/{study}/{_FILE} stops no cell: {error}.")
        return frozenset()


@cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


def stopped_heads(plan: Plan, ledger: Ledger) -> frozenset[str]:
    """Digests of the first stages of a study's cells that are marked: no two have the same."""
    titles = stopped_titles(ledger, plan.study.name)
    return frozenset(cell.stages[0].digest for cell in plan.cells if cell.title in titles)


def as_stopped(
    standings: Mapping[str, Standing], cells: Iterable[Cell], heads: Collection[str]
) -> dict[str, Standing]:
    """How stages stand where the cells that begin with `heads` are stopped."""
    found = dict(standings)
    for stage in (stage for cell in cells if cell.stages[0].digest in heads for stage in cell):
        match standings[stage.digest]:
            case Finished() | Failed():
                pass
            case Begun(step, total):
                found[stage.digest] = Stopped(step, total)
            case _:
                found[stage.digest] = Stopped()
    return found


def standings_of(plan: Plan, ledger: Ledger) -> dict[str, Standing]:
    """How a study's stages stand, those of its stopped cells among them."""
    return as_stopped(ledger.standings(plan.stages), plan.cells, stopped_heads(plan, ledger))


@contextmanager
def heeding(
    plan: Plan, ledger: Ledger, *, every_s: float = _LOOK_EVERY_S
) -> Generator[Callable[[], frozenset[str]]]:
    """The first stages of a study's stopped cells, to be asked inside the block.

    What was stopped once stays so there: whoever wants it again has a driver of their own.
    """
    heads, over = stopped_heads(plan, ledger), threading.Event()
    hasty = ledger.patient(0.0, _log.info)

    def look() -> None:
        nonlocal heads
        while not over.wait(every_s):
            with suppress(StorageError):
                heads |= stopped_heads(plan, hasty)

    thread = threading.Thread(target=look, name="stops", daemon=True)
    thread.start()
    try:
        yield lambda: heads
    finally:
        over.set()
        thread.join(1.0)  # a storage that is away may not answer
