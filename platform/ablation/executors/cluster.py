"""Cells on a Ray cluster: Tune is the queue of cells, Train runs a cell's workers.

The driver's side: queue what is left, round after round. Neither Tune nor Train is asked to
remember anything: the ledger is the truth, and the next driver makes its list from there.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from ablation.cells import Cell
from ablation.events import Observe
from ablation.execute import never
from ablation.executors.news import listening, new_board
from ablation.executors.room import slots
from ablation.executors.turns import Turns
from ablation.executors.workers import Job, trial, trial_resources
from ablation.layout import Layout
from ablation.lease import BEAT_S, EXPIRY_S
from ablation.ledger import Ledger
from ablation.process import scratch_folder, sweep
from ablation.protocol import Place, Trainer
from ablation.stage_folder import StageFolder
from ablation.stops import as_stopped
from ablation.terms import Terms

__all__ = ["run_cluster"]

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.25
_ROOM_EVERY_S = 10.0
_LOST_TRIALS = 100
"""So often in a round Tune begins a trial again whose process was lost; `retries` ends it before,
unless it is lost before it begins an attempt."""


def run_cluster(
    cells: Iterable[Cell],
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    layout: Layout,
    observe: Observe,
    should_stop: Callable[[], bool] = never,
    stop_asked: Callable[[], bool] = never,
    stopped: Callable[[], frozenset[str]] = frozenset,
    terms: Terms | None = None,
) -> dict[str, str]:
    """Run cells on the cluster that this process is connected to until each has ended or is lost.

    Cells that start from the same training share a trial, so that it is trained once. What is lost
    with its node, or held by another process, is run again as long as anything comes of it.
    `should_stop` is asked in the workers, so it must pickle; `stop_asked` is asked here, and so is
    which cells, by their first stages, are `stopped` beside the others.

    Returns why cells were lost (they cannot start, the storage refused), by the digest of their
    first stage; how the others ended stands in the ledger.
    """
    terms, waiting, lost = terms or Terms(), list(cells), dict[str, str]()
    ledger = ledger.patient(terms.patience_s, _log.warning)
    with listening(observe) as inbox, _posting(stop_asked, stopped) as board, _watching(layout):
        job = Job(
            trainer=trainer,
            ledger=ledger,
            place=place,
            layout=layout,
            terms=terms,
            inbox=inbox,
            board=board,
            should_stop=should_stop,
        )
        before, idle = None, 0
        while waiting and not stop_asked() and not should_stop():
            lost = _round(_groups(waiting), job, stop_asked, stopped)
            standings = ledger.standings(stage.digest for cell in waiting for stage in cell)
            left = as_stopped(standings, waiting, stopped())
            waiting = [cell for cell in waiting if not cell.ended(left)]
            folders = [ledger.stage(digest) for digest in standings]
            evidence = [folder.evidence() for folder in folders]
            moves = evidence != before or _others_at_work(folders, stop_asked)
            idle = 0 if moves else idle + 1
            # Who was at a stage may have left it since: then it is free, and nothing has moved.
            free = any(cell.stages[0].digest not in lost for cell in waiting)
            if idle > int(free):
                break
            before = evidence
    return lost


def _others_at_work(folders: Sequence[StageFolder], stop_asked: Callable[[], bool]) -> bool:
    """Whether a claim on a stage beats, or is given up, in the time in which a dead one expires."""
    first = [folder.claims() for folder in folders]
    end = time.monotonic() + EXPIRY_S
    while any(first) and not stop_asked() and time.monotonic() < end:
        time.sleep(BEAT_S)
        if [folder.claims() for folder in folders] != first:
            return True
    return False


def _round(
    groups: Sequence[Sequence[Cell]],
    job: Job,
    stop_asked: Callable[[], bool],
    stopped: Callable[[], frozenset[str]],
) -> dict[str, str]:
    """Give every training a trial and wait for all; why some came no further."""
    layout, heads = job.layout, [group[0].stages[0].digest for group in groups]
    turns = Turns(
        len(groups),
        name=job.terms.driver,
        priority=job.terms.priority,
        most=layout.concurrency,
        slots=partial(slots, layout),
        over=lambda at: stop_asked() or stopped().issuperset(heads[at:]),
    )
    sweep()
    with scratch_folder() as scratch, turns:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trial, groups=groups, job=job), trial_resources(layout)
            ),
            tune_config=tune.TuneConfig(
                search_alg=turns, num_samples=len(groups), reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="cells",
                storage_path=scratch,
                verbose=0,
                # A trial raises nothing: what fails is its process, and that is begun again.
                failure_config=tune.FailureConfig(max_failures=_LOST_TRIALS),
            ),
        ).fit()
    reasons: dict[str, str] = {}
    for result in (results[i] for i in range(len(results))):
        group = groups[(result.config or {})["group"]]
        error = str(result.error or "").strip().rpartition("\n")[2]
        if reason := error or (result.metrics or {}).get("reason", ""):
            reasons[group[0].stages[0].digest] = reason
    return reasons


@contextmanager
def _posting(
    stop_asked: Callable[[], bool], stopped: Callable[[], frozenset[str]]
) -> Generator[Any]:
    """A board on which a stop is posted when it is asked for here, of all or of some trainings."""
    board, over = new_board(), threading.Event()

    def post() -> None:
        while not over.wait(_LOOK_EVERY_S):
            if beginnings := [""] if stop_asked() else [*stopped()]:
                board.stop.remote(beginnings)  # again and again: a lost board begins anew

    thread = threading.Thread(target=post, name="posting", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join()
        ray.kill(board)


@contextmanager
def _watching(layout: Layout) -> Generator[None]:
    """Say it when no node is left that could hold a cell: Ray waits for one without a word."""
    over, told = threading.Event(), False

    def watch() -> None:
        nonlocal told
        while not over.wait(_ROOM_EVERY_S):
            with suppress(RayError):
                none = slots(layout) == 0
                if none and not told:
                    _log.warning("No node of the cluster has room for a cell: they wait for one.")
                told = none

    thread = threading.Thread(target=watch, name="watching", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)  # a head that is lost may not answer


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by their first stage, in order."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.stages[0].digest, []).append(cell)
    return list(groups.values())
