"""Cells one after another in this process: no cluster, no waiting, easy to debug."""

import time
from collections.abc import Callable, Iterable

from ablation.cells import Cell
from ablation.events import Observe
from ablation.execute import execute_cell
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer
from ablation.provenance import provenance

__all__ = ["run_inline"]


def run_inline(
    cells: Iterable[Cell],
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    observe: Observe,
    should_stop: Callable[[], bool],
    checkpoint_every_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Bring every cell to its end; what came of it is in the ledger.

    A cell that fails does not stop the others. A stop leaves the rest for the next call.
    """
    origin = provenance(trainer)
    for cell in cells:
        if should_stop():
            return
        execute_cell(
            cell,
            trainer=trainer,
            ledger=ledger,
            place=place,
            observe=observe,
            should_stop=should_stop,
            checkpoint_every_s=checkpoint_every_s,
            origin=origin,
            clock=clock,
        )
