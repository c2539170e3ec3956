"""Cells on a Ray cluster: Tune is the queue of cells, Train runs a cell's workers.

The driver's side: connect, count what fits, queue. Neither Tune nor Train is asked to remember
anything: the ledger is the truth, and the next driver makes its list from there.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray._private import services
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.state import state
from ray.exceptions import RayError

from ablation.cells import Cell
from ablation.events import Observe
from ablation.execute import never
from ablation.executors.news import listening, new_board
from ablation.executors.room import workers_on
from ablation.executors.sigterm import HOOK
from ablation.executors.workers import Job, trial, trial_resources
from ablation.layout import Layout, LostPlaceError, PlaceError
from ablation.lease import BEAT_S, EXPIRY_S
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer
from ablation.stage_folder import StageFolder
from ablation.terms import Terms

__all__ = ["connected", "run_cluster"]

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.25
_JOIN_WITHIN_S = 60.0
_KNOCK_S = 10.0
_LOST_TRIALS = 100
"""So often in a round Tune begins a trial again whose process was lost; `retries` ends it before,
unless it is lost before it begins an attempt."""

_NO_STRAY_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}  # a worker without GPUs sees none
_ENVIRONMENT = {
    **_NO_STRAY_GPUS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's table of trials: ours says more
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    WORKER_PROCESS_SETUP_HOOK_ENV_VAR: HOOK,
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must reach the command line
}


@contextmanager
def connected(layout: Layout) -> Generator[Layout]:
    """A connection to the cluster at `layout.address`, and the layout with its GPUs settled.

    `local` is a cluster of its own that ends with the block; a process that is connected already
    stays so. Nodes of a cluster that is there may come within a minute.

    Raises PlaceError where there is no cluster, or no room for a single cell, and LostPlaceError
    where the cluster is lost before the block ends.
    """
    if ray.is_initialized():
        yield _fitting(layout)
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    theirs = {"env_vars": _NO_STRAY_GPUS, "worker_process_setup_hook": HOOK}
    embedded = layout.address == "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _knock(layout.address)
        with _apart():
            ray.init(
                address=layout.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=None if embedded else theirs,  # what it starts has our environment
                include_dashboard=False if embedded else None,
            )
    except Exception as error:  # Ray raises what it likes, a bare Exception among it
        raise PlaceError(_refusal(layout.address, _last_line(error).rstrip("."))) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in its place
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that were lost
            yield _fitting(layout, wait_s=0.0 if embedded else _JOIN_WITHIN_S)
    except (RayError, ConnectionError) as error:
        raise LostPlaceError(
            f"The cluster at {layout.address!r} was lost: {_last_line(error)}. What was committed "
            f"is kept. Run the same command again when the cluster is back, or on another one."
        ) from error
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once that nobody listens at a host and port: Ray would try for minutes.

    Raises OSError.
    """
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _refusal(address: str, why: str) -> str:
    if address == "local":
        return f"Ray could not start on this machine: {why}. Try again when it has less to do."
    return (
        f"address must be that of a Ray cluster which lets this process in, got {address!r}: "
        f"{why}. Start one there, give its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or "
        f"leave address out for an embedded one."
    )


@contextmanager
def _apart() -> Generator[None]:
    """Processes that Ray starts get groups of their own.

    A signal to the driver's whole group (`timeout`, `srun`, a terminal) must reach the driver
    alone, which then needs its cluster to save what is under way. They still end when it dies.
    """
    names = vars(services)
    plain = names["ConsolePopen"]
    names["ConsolePopen"] = partial(plain, process_group=0)
    try:
        yield
    finally:
        names["ConsolePopen"] = plain


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
    terms: Terms | None = None,
) -> dict[str, str]:
    """Run cells on the cluster that this process is connected to until each has ended or is lost.

    Cells that start from the same training share a trial, so that it is trained once. What is lost
    with its node, or held by another process, is run again as long as anything comes of it.
    `should_stop` is asked in the workers, so it must pickle; `stop_asked` is asked here.

    Returns why cells were lost (they cannot start, the storage refused), by the digest of their
    first stage; how the others ended stands in the ledger.
    """
    terms, waiting, lost = terms or Terms(), list(cells), dict[str, str]()
    ledger = ledger.patient(terms.patience_s, _log.warning)
    with listening(observe) as events, _posting(stop_asked) as board:
        job = Job(
            trainer=trainer,
            ledger=ledger,
            place=place,
            layout=layout,
            terms=terms,
            events=events,
            board=board,
            should_stop=should_stop,
        )
        before = None
        while waiting and not stop_asked() and not should_stop():
            lost = _round(_groups(waiting), job)
            standings = ledger.standings(stage.digest for cell in waiting for stage in cell)
            waiting = [cell for cell in waiting if not cell.ended(standings)]
            folders = [ledger.stage(digest) for digest in standings]
            evidence = [folder.evidence() for folder in folders]
            if evidence == before and not _others_at_work(folders, stop_asked):
                break
            before = evidence
    return lost


def _others_at_work(folders: Sequence[StageFolder], stop_asked: Callable[[], bool]) -> bool:
    """Whether a claim on a stage beats, or is given up, in the time in which a dead one expires."""
    first = [folder.beats() for folder in folders]
    end = time.monotonic() + EXPIRY_S
    while any(first) and not stop_asked() and time.monotonic() < end:
        time.sleep(BEAT_S)
        if [folder.beats() for folder in folders] != first:
            return True
    return False


def _round(groups: Sequence[Sequence[Cell]], job: Job) -> dict[str, str]:
    """Give every training a trial and wait for all; why some came no further."""
    layout = job.layout
    at_once = layout.concurrency
    if layout.most > 1:  # others ask for their room themselves, that of nodes to come among it
        slots = max(1, _slots(layout))
        at_once = min(at_once or slots, slots)
    with TemporaryDirectory(prefix="ablation-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trial, groups=groups, job=job), trial_resources(layout)
            ),
            param_space={"group": tune.grid_search(list(range(len(groups))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
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
def _posting(stop_asked: Callable[[], bool]) -> Generator[Any]:
    """A board on which a stop is posted when it is asked for here."""
    board, over = new_board(), threading.Event()

    def post() -> None:
        while not over.wait(_LOOK_EVERY_S):
            if stop_asked():
                board.stop.remote()  # again and again: a board that was lost begins anew

    thread = threading.Thread(target=post, name="posting", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join()
        ray.kill(board)


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by their first stage, in order."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.stages[0].digest, []).append(cell)
    return list(groups.values())


def _fitting(layout: Layout, wait_s: float = 0.0) -> Layout:
    """The layout with a number of GPUs.

    Raises PlaceError where not even one cell fits, after so many seconds either.
    """
    end = time.monotonic() + wait_s
    while _slots(layout) == 0 and time.monotonic() < end:
        time.sleep(1.0)
    nodes = _nodes()
    if layout.gpus_per_worker is None:
        layout = replace(layout, gpus_per_worker=int(any(node.get("GPU", 0) for node in nodes)))
    if _slots(layout) == 0:
        offer = "; ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        raise PlaceError(
            f"A cell needs {layout.least} worker(s) of {layout.cpus_per_worker} CPUs and "
            f"{layout.gpus_per_worker} GPUs, and the cluster's nodes have: {offer}. Ask for fewer "
            f"workers or smaller ones, or add nodes."
        )
    return layout


def _slots(layout: Layout) -> int:
    """How many cells the cluster holds at a time, counted node by node."""
    return sum(workers_on(node, layout) for node in _nodes()) // layout.least


def _nodes() -> Sequence[Mapping[str, float]]:
    nodes, leaving = ray.nodes(), state.get_draining_nodes()  # type: ignore[no-untyped-call]
    return [n["Resources"] for n in nodes if n["Alive"] and n["NodeID"] not in leaving]


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
