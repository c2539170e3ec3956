"""Cells on a Ray cluster: Tune is the queue of cells, Train runs a cell's workers.

A cell of one worker runs in the process of its Tune trial (Train's local mode), which stays warm
for the next cell; only a cell of several workers pays for a worker group. Either way the workers
call `execute`, the ledger is the truth, and neither Tune nor Train is asked to remember anything.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import train, tune
from ray.train import collective
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import queue as ray_queue

from ablation.cells import Cell, Failed, Outcome, PlannedStage
from ablation.events import Event, Observe
from ablation.execute import execute, never, run_stages
from ablation.layout import Layout
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer

__all__ = ["CapacityError", "run_cluster"]

_PROGRESS_EVERY_S = 0.5
_LISTEN_EVERY_S = 0.1
# The head node offers this resource; a trial that only waits for its workers asks for a trace of
# it, since Tune refuses a trial that asks for nothing and a share of a CPU may not be free.
_ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}


class CapacityError(Exception):
    """No node of the cluster can hold what a cell needs; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every worker of every cell is given."""

    trainer: Trainer
    ledger: Ledger
    place: Place
    layout: Layout
    events: ray_queue.Queue
    should_stop: Callable[[], bool]


def run_cluster(
    cells: Sequence[Cell],
    *,
    trainer: Trainer,
    ledger: Ledger,
    place: Place,
    layout: Layout,
    observe: Observe,
    should_stop: Callable[[], bool] = never,
) -> dict[str, str]:
    """Run cells on the cluster at `layout.address` until each has ended or was lost.

    Cells that start from the same training share a trial, so that it is trained once.
    `should_stop` is asked in the workers, so it must pickle.

    Returns why cells were lost (their worker died, the storage refused), by title; how the others
    ended stands in the ledger. Raises CapacityError before anything runs.
    """
    with _connected(layout.address):
        layout = _with_gpus(layout)
        slots, groups = _slots(layout), _groups(cells)
        events = ray_queue.Queue(actor_options={"num_cpus": 0})
        job = _Job(
            trainer=trainer,
            ledger=ledger,
            place=place,
            layout=layout,
            events=events,
            should_stop=should_stop,
        )
        with _listening(events, observe), TemporaryDirectory(prefix="ablation-tune-") as scratch:
            results = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_trial, groups=groups, job=job),
                    _trial_resources(layout),
                ),
                param_space={"group": tune.grid_search(list(range(len(groups))))},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=min(slots, layout.concurrency or slots),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(name="cells", storage_path=scratch, verbose=0),
            ).fit()
    errors = [(results[i].config or {}, results[i].error) for i in range(len(results))]
    return {
        cell.title: _last_line(error)
        for config, error in errors
        if error
        for cell in groups[config["group"]]
    }


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by their first stage, in order."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.stages[0].digest, []).append(cell)
    return list(groups.values())


@contextmanager
def _connected(address: str) -> Generator[None]:
    """A connection to the cluster; `local` is a cluster of its own that ends with the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's table of trials: ours says more
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must reach the command line
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _with_gpus(layout: Layout) -> Layout:
    if layout.gpus_per_worker is not None:
        return layout
    return replace(layout, gpus_per_worker=int(any(node.get("GPU", 0) for node in _nodes())))


def _nodes() -> list[Mapping[str, float]]:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def _slots(layout: Layout) -> int:
    """How many cells the cluster holds at a time, counted node by node."""
    nodes = _nodes()
    fits = sum(_workers_on(resources, layout) for resources in nodes)
    if (slots := fits // layout.workers) == 0:
        offer = "; ".join(
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            for resources in nodes
        )
        raise CapacityError(
            f"A cell needs {layout.workers} worker(s) of {layout.cpus_per_worker} CPUs and "
            f"{layout.gpus_per_worker} GPUs, and the cluster's nodes have: {offer}. Ask for fewer "
            f"workers or smaller ones, or add nodes."
        )
    return slots


def _workers_on(resources: Mapping[str, float], layout: Layout) -> int:
    fits = int(resources.get("CPU", 0) // layout.cpus_per_worker)
    if layout.gpus_per_worker:
        fits = min(fits, int(resources.get("GPU", 0) // layout.gpus_per_worker))
    return fits


def _worker_resources(layout: Layout) -> dict[str, float]:
    return {"CPU": layout.cpus_per_worker, "GPU": layout.gpus_per_worker or 0}


def _trial_resources(layout: Layout) -> dict[str, float]:
    return _worker_resources(layout) if layout.workers == 1 else dict(_ON_HEAD)


def _trial(config: Mapping[str, Any], *, groups: Sequence[Sequence[Cell]], job: _Job) -> None:
    """The cells of one training, in a Tune trial: start their workers and wait for them."""
    cells = groups[config["group"]]
    layout, storage = job.layout, job.ledger.storage
    # Workers must all begin at the same step, so it is looked up once, before they start.
    digests = {stage.digest for cell in cells for stage in cell}
    resume = {digest: job.ledger.stage(digest).resume_step() for digest in digests}
    TorchTrainer(
        _work,
        train_loop_config={"cells": cells, "job": job, "resume": resume},
        torch_config=TorchConfig(backend=None if layout.gpus_per_worker else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=0 if layout.workers == 1 else layout.workers,
            use_gpu=bool(layout.gpus_per_worker),
            resources_per_worker=_worker_resources(layout),
        ),
        run_config=train.RunConfig(
            name=cells[0].stages[0].digest,
            storage_path=f"{storage.root}/ray",
            storage_filesystem=storage.files,
        ),
    ).fit()
    tune.report({"cells": len(cells)})  # Tune writes to the terminal of a trial that says nothing


def _work(config: Mapping[str, Any]) -> None:
    """One worker: all stages of its cells in order, in step with the other workers."""
    job: _Job = config["job"]
    group = job.layout.workers > 1
    lead = not group or train.get_context().get_world_rank() == 0
    observe = _Sender(job.events) if lead else _silent
    should_stop = job.should_stop
    if group and should_stop is not never:
        should_stop = partial(_ask_lead, should_stop, lead=lead)

    def run(stage: PlannedStage) -> Outcome | None:
        outcome = execute(
            stage,
            trainer=job.trainer,
            ledger=job.ledger,
            place=job.place,
            observe=observe,
            should_stop=should_stop,
            lead=lead,
            resume_step=config["resume"][stage.digest],
            workers=job.layout.workers,
            checkpoint_every_s=job.layout.checkpoint_every_s,
        )
        if group:
            if isinstance(outcome, Failed):  # the others may wait for this worker for ever
                raise RuntimeError(outcome.error)
            collective.barrier()  # what the lead exported is there for all
        return outcome

    for cell in config["cells"]:
        run_stages(cell, run, ledger=job.ledger, observe=observe)


def _ask_lead(ask: Callable[[], bool], *, lead: bool) -> bool:
    """One answer for all workers of a group: they must stop after the same step."""
    answer: bool = collective.broadcast_from_rank_zero(ask() if lead else None)
    return answer


class _Sender:
    """Sends a worker's events to the driver, of progress no more than a person can follow."""

    def __init__(self, events: ray_queue.Queue) -> None:
        self._events = events
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind == "progress":
            if (now := time.monotonic()) - self._last < _PROGRESS_EVERY_S:
                return
            self._last = now
        self._events.put(event)


def _silent(event: Event) -> None:
    """Say nothing."""


@contextmanager
def _listening(events: ray_queue.Queue, observe: Observe) -> Generator[None]:
    """Pass events on to the observer, in a thread of the driver, until the block ends."""
    done = threading.Event()
    thread = threading.Thread(target=partial(_listen, events, observe, done.is_set), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _listen(events: ray_queue.Queue, observe: Observe, done: Callable[[], bool]) -> None:
    while True:
        last = done()
        for event in events.get_nowait_batch(events.qsize()):
            observe(event)
        if last:
            return
        time.sleep(_LISTEN_EVERY_S)


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]
