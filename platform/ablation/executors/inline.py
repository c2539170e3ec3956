"""Cells one after another in this process: no cluster, no waiting, easy to debug."""

import time
from collections.abc import Callable, Iterable
from functools import partial

from ablation.cells import Cell
from ablation.events import Observe
from ablation.execute import never, unnoticed
from ablation.execute_cell import execute_cell
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer
from ablation.provenance import provenance
from ablation.storage import LostStorageError, StorageError
from ablation.terms import Terms

__all__ = ["run_inline"]


def run_inline(
    cells: Iterable[Cell],
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    observe: Observe,
    should_stop: Callable[[], bool] = never,
    stopped: Callable[[], frozenset[str]] = frozenset,
    notice: Callable[[], str] = unnoticed,
    terms: Terms | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Bring every cell to its end; what came of it is in the ledger.

    A cell that fails does not stop the others, and one that another process is at comes last. A
    stop leaves the rest for the next call, one of the cells whose first stages are `stopped` only
    these. Returns why cells were lost, by the digest of their first stage.

    Raises LostStorageError where the storage refuses for too long.
    """
    origin, terms = provenance(trainer), terms or Terms()
    waiting, lost = list(cells), dict[str, str]()
    while waiting:
        busy = []
        for cell in waiting:
            if should_stop():
                return lost
            head = cell.stages[0].digest
            try:
                results = execute_cell(
                    cell,
                    trainer=trainer,
                    ledger=ledger,
                    place=place,
                    observe=observe,
                    should_stop=partial(_asked, should_stop, stopped, head),
                    notice=notice,
                    terms=terms,
                    origin=origin,
                    clock=clock,
                )
            except LostStorageError:
                raise
            except StorageError as error:  # of this cell's own folder
                lost[head] = str(error)
            else:
                if "busy" in results.values():
                    busy.append(cell)
        waiting = busy
    return lost


def _asked(
    should_stop: Callable[[], bool], stopped: Callable[[], frozenset[str]], head: str
) -> bool:
    return should_stop() or head in stopped()
