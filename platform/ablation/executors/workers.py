"""What runs on the cluster: a Tune trial for each training, and in it the workers of its cells.

One worker is Train's local mode, in the trial's own process; several are a worker group. Either
way every worker calls `execute`.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import train, tune
from ray.train import TrainingFailedError, collective
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from ablation.cells import Cell, Failed, Outcome, PlannedStage
from ablation.events import Event, Observe
from ablation.execute import execute, never, run_stages
from ablation.executors.news import ON_HEAD, Sender
from ablation.layout import Layout
from ablation.ledger import Ledger
from ablation.protocol import Place, Trainer

__all__ = ["Job", "trial", "trial_resources"]

_LEAD_GRACE_S = 10.0
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every worker of every cell is given."""

    trainer: Trainer
    ledger: Ledger
    place: Place
    layout: Layout
    events: Queue
    should_stop: Callable[[], bool]


def trial_resources(layout: Layout) -> dict[str, float]:
    """What a trial asks for: a worker's share, or a trace, where its workers ask for theirs.

    Tune refuses a trial that asks for nothing, and a share of a CPU may not be free.
    """
    return _worker_resources(layout) if layout.workers == 1 else {"CPU": 0, **ON_HEAD}


def trial(config: Mapping[str, Any], *, groups: Sequence[Sequence[Cell]], job: Job) -> None:
    """Bring the cells of one training to their ends: start their workers and wait for them.

    A worker group ends with the first stage that fails; as long as that is news, another group
    does what is left. A group that ends without news is lost, and so is the trial.
    """
    cells = groups[config["group"]]
    digests = list(dict.fromkeys(stage.digest for cell in cells for stage in cell))
    ended, more = _ended(job.ledger, digests), True
    while more:
        try:
            _trainer(cells, job, digests, ended).fit()
            more = False
        except TrainingFailedError:
            before, ended = ended, _ended(job.ledger, digests)
            if ended == before:
                raise
    tune.report({"cells": len(cells)})  # Tune writes to the terminal of a trial that says nothing


def _ended(ledger: Ledger, digests: Sequence[str]) -> frozenset[str]:
    return frozenset(digest for digest in digests if ledger.outcome(digest) is not None)


def _trainer(
    cells: Sequence[Cell], job: Job, digests: Sequence[str], ended: Set[str]
) -> TorchTrainer:
    layout, storage = job.layout, job.ledger.storage
    # Workers must all begin at the same step, so it is looked up once, before they start.
    resume = {digest: job.ledger.stage(digest).resume_step() for digest in digests}
    return TorchTrainer(
        _work,
        train_loop_config={"cells": cells, "job": job, "resume": resume, "ended": ended},
        torch_config=TorchConfig(backend=None if layout.gpus_per_worker else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=0 if layout.workers == 1 else layout.workers,
            use_gpu=bool(layout.gpus_per_worker),
            resources_per_worker=_worker_resources(layout),
        ),
        run_config=train.RunConfig(
            name=f"{digests[0]}-{len(ended)}",  # Train resumes a run of the same name
            storage_path=f"{storage.root}/ray",
            storage_filesystem=storage.files,
        ),
    )


def _worker_resources(layout: Layout) -> dict[str, float]:
    return {"CPU": layout.cpus_per_worker, "GPU": layout.gpus_per_worker or 0}


def _work(config: Mapping[str, Any]) -> None:
    """One worker: all stages of its cells in order, in step with the other workers."""
    job: Job = config["job"]
    group = job.layout.workers > 1
    lead = not group or train.get_context().get_world_rank() == 0
    observe = Sender(job.events) if lead else _silent
    resume: Mapping[str, int] = config["resume"]

    def run(stage: PlannedStage) -> Outcome | None:
        outcome = _stage(stage, job, lead=lead, observe=observe, from_step=resume[stage.digest])
        if group:
            if isinstance(outcome, Failed) and stage.digest not in config["ended"]:
                raise RuntimeError(outcome.error)  # the others may wait for this worker for ever
            collective.barrier()  # what the lead exported is there for all
        return outcome

    for cell in config["cells"]:
        run_stages(cell, run, ledger=job.ledger, observe=observe)


def _stage(
    stage: PlannedStage, job: Job, *, lead: bool, observe: Observe, from_step: int
) -> Outcome | None:
    should_stop = job.should_stop
    if job.layout.workers > 1 and should_stop is not never:
        should_stop = partial(_ask_lead, should_stop, lead=lead)
    try:
        return execute(
            stage,
            trainer=job.trainer,
            ledger=job.ledger,
            place=job.place,
            observe=observe,
            should_stop=should_stop,
            lead=lead,
            resume_step=from_step,
            workers=job.layout.workers,
            checkpoint_every_s=job.layout.checkpoint_every_s,
        )
    except Exception:
        if not lead:  # Train now ends the group: first the lead may record its own, like failure
            _wait_for_outcome(job.ledger, stage.digest)
        raise


def _wait_for_outcome(ledger: Ledger, digest: str) -> None:
    end = time.monotonic() + _LEAD_GRACE_S
    while ledger.outcome(digest) is None and time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)


def _ask_lead(ask: Callable[[], bool], *, lead: bool) -> bool:
    """One answer for all workers of a group: they must stop after the same step."""
    answer: bool = collective.broadcast_from_rank_zero(ask() if lead else None)
    return answer


def _silent(event: Event) -> None:
    """Say nothing."""
