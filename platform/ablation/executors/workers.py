"""What runs on the cluster: a Tune trial for each training, and in it the workers of its cells.

One worker is Train's local mode, in the trial's own process; several are a worker group. Either
way every worker calls `execute`. A trial starts its workers again for as long as that is of use.
"""

import pickle
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import train, tune
from ray.exceptions import RayError
from ray.train import TrainingFailedError, collective
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import RayTrainError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ablation.cells import Cell, Failed, Finished
from ablation.events import Event
from ablation.execute_cell import execute_cell
from ablation.executors.news import ON_HEAD, Sender, Word
from ablation.executors.room import Growth, fitting, free_workers, reclaim
from ablation.group import ALONE, Group, GroupOverError, LostNodeError
from ablation.layout import Layout
from ablation.ledger import Ledger
from ablation.notice import SIGTERM, Watch, announced
from ablation.process import scratch_folder
from ablation.protocol import Place, Trainer
from ablation.retries import said
from ablation.terms import Terms

__all__ = ["Job", "trial", "trial_resources"]

_BLAME_WITHIN_S = 10.0
"""In this time Train ends a group that lost a worker; it looks at its workers every 2 s."""

_TURN_S = 1800
"""A worker may be so late beside what the lead waits for a storage (torch's own default)."""

_WEEK_S = 7 * 24 * 3600

_FRUITLESS = 3
"""So many groups in a row that did not even begin an attempt are a fault of the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every worker of every cell is given."""

    trainer: Trainer
    ledger: Ledger
    place: Place
    layout: Layout
    terms: Terms
    inbox: Any
    board: Any
    should_stop: Callable[[], bool]


def trial_resources(layout: Layout) -> dict[str, float]:
    """What a trial asks for: a worker's share, or a trace, where its workers ask for theirs.

    Tune refuses a trial that asks for nothing, and a share of a CPU may not be free.
    """
    return _worker_resources(layout) if layout.most == 1 else {"CPU": 0, **ON_HEAD}


def trial(config: Mapping[str, Any], *, groups: Sequence[Sequence[Cell]], job: Job) -> None:
    """Bring the cells of one training as far as they come, and report why no further.

    It never raises, since Tune would begin it again: only a trial whose process is lost may be.
    """
    try:
        reason = _bring(groups[config["group"]], job)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2]}"
    tune.report({"reason": reason})


def _bring(cells: Sequence[Cell], job: Job) -> str:
    """Start workers until all has ended or nothing comes of it; why then, empty for no reason."""
    first, fruitless, before = cells[0].stages[0], 0, _evidence(cells, job.ledger)
    raised: Exception | None = None
    while not _ask(job.board.stopped, first.digest):
        group, trouble = f"{first.digest}-{secrets.token_hex(4)}", None
        try:
            with scratch_folder() as scratch:
                _trainer(cells, job, group, scratch, raised).fit()
        except (TrainingFailedError, RayError) as error:
            trouble = error
        posted, on = _ask(job.board.forget, group) or (None, frozenset())
        if trouble is None:
            return ""
        if _lacks_room(trouble):
            found = "its workers found no room to begin in for a minute"
            paused = partial(Event, digest=first.digest, name=first.name, kind="paused")
            Sender(job.inbox)(paused(message=found))
            continue
        # A worker whose peer is lost raises too: only where none was, it is what ended the group.
        raised = _lost_node(on) if _lost_a_worker(trouble) else posted
        after = _evidence(cells, job.ledger)
        fruitless, before = (fruitless + 1 if after == before else 0), after
        if fruitless == _FRUITLESS:
            return str(trouble).strip().rpartition("\n")[2]
        time.sleep(fruitless)
    return ""


def _ask(question: Any, *about: str) -> Any:
    """What the board says; None of one that was lost, which comes back and is told again."""
    try:
        return ray.get(question.remote(*about))
    except RayError:
        return None


def _lacks_room(error: Exception) -> bool:
    """Whether a group waited for its room in vain, for a minute: another may be counted now."""
    cause = error.controller_failure if isinstance(error, ControllerError) else None
    return isinstance(cause, WorkerGroupStartupTimeoutError)


def _lost_a_worker(error: Exception) -> bool:
    """Whether a group ended for another reason than what its workers raised."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else [error]
    return any(isinstance(failure, RayTrainError | RayError) for failure in failures)


def _lost_node(on: frozenset[str]) -> LostNodeError | None:
    """What is to be said of a group that lost a worker, where one of its nodes is gone too."""
    known = ray.nodes()  # type: ignore[no-untyped-call]
    alive = {node["NodeID"] for node in known if node["Alive"]}
    return LostNodeError() if on - alive else None


def _evidence(cells: Sequence[Cell], ledger: Ledger) -> list[tuple[bool, int]]:
    digests = dict.fromkeys(stage.digest for cell in cells for stage in cell)
    return [ledger.stage(digest).evidence() for digest in digests]


def _trainer(
    cells: Sequence[Cell], job: Job, group: str, scratch: str, raised: Exception | None
) -> TorchTrainer:
    layout, workers = job.layout, 0
    if layout.most > 1:
        reclaim()
        workers = fitting(layout, job.trainer, cells, free_workers(layout))
    return TorchTrainer(
        _work,
        train_loop_config={
            "cells": cells,
            "job": job,
            "group": group,
            "workers": workers,
            "raised": raised,
        },
        torch_config=TorchConfig(
            backend=None if layout.gpus_per_worker else "gloo",
            timeout_s=int(min(job.terms.patience_s, _WEEK_S)) + _TURN_S,
        ),
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(layout.gpus_per_worker),
            resources_per_worker=_worker_resources(layout),
        ),
        run_config=train.RunConfig(
            name=group,  # Train resumes a run of the same name
            storage_path=scratch,
            # The trial begins groups again itself, and by the ledger.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )


def _worker_resources(layout: Layout) -> dict[str, float]:
    return {"CPU": layout.cpus_per_worker, "GPU": layout.gpus_per_worker or 0}


def _work(config: Mapping[str, Any]) -> None:
    """One worker: all stages of its cells in order, in step with the other workers."""
    job: Job = config["job"]
    cells: Sequence[Cell] = config["cells"]
    workers: int = config["workers"]
    lead = not workers or train.get_context().get_world_rank() == 0
    post = _Post(job, config["group"])
    grow = Growth(job.layout, job.trainer, cells, workers or 1)
    with ExitStack() as stack:
        told = stack.enter_context(SIGTERM.at_work(job.layout.grace_s))
        stack.enter_context(Watch(partial(post.look, told)))
        for cell in cells:
            execute_cell(
                cell,
                trainer=job.trainer,
                ledger=job.ledger,
                place=job.place,
                observe=Sender(job.inbox) if lead else _silent,
                should_stop=lambda: post.word.stop or job.should_stop() or grow(),
                notice=lambda: post.word.notice,
                terms=job.terms,
                group=_group(workers, lead, post, config["raised"]),
            )
    if lead and grow.found:
        raise GroupOverError("There is room for a larger group.")


def _group(workers: int, lead: bool, post: "_Post", raised: Exception | None) -> Group:
    if not workers:
        return ALONE
    return Group(
        workers=workers,
        lead=lead,
        share=lambda value: collective.broadcast_from_rank_zero(_brief(value) if lead else None),
        blame=post.blame if lead else post.raised,
        raised=raised,
    )


def _brief(value: Any) -> Any:
    """What the workers need of a result: a broadcast must be small."""
    match value:
        case (Finished(), step):
            return Finished({}), step
        case (Failed(), step):
            return Failed(""), step
    return value


class _Post:
    """A worker's end of the board."""

    def __init__(self, job: Job, group: str) -> None:
        self._job, self._board, self._group = job, job.board, group
        self._node = ray.get_runtime_context().get_node_id()
        self.word = Word(stop=False, notice="", error=None)

    def look(self, told: Callable[[], str]) -> str:
        """Post what this worker knows, and take what the board says; in a thread."""
        mine = told() or announced(self._job.layout.notice or "")
        try:
            self.word = ray.get(self._board.report.remote(self._group, self._node, mine), timeout=5)
        except RayError:  # the board is away, so what this worker knows has to do
            self.word = self.word._replace(notice=mine or self.word.notice)
        return self.word.notice

    def raised(self, error: Exception) -> Exception:
        """Post an exception, and wait until the lead has ended the group, or Train has."""
        self._board.raised.remote(self._group, _portable(error))
        time.sleep(2 * _BLAME_WITHIN_S)
        return error

    def blame(self, error: Exception) -> Exception:
        """The exception of a peer where one came; a peer that was lost takes this worker along."""
        time.sleep(_BLAME_WITHIN_S)
        return self.word.error or error


def _portable(error: Exception) -> Exception:
    """The exception, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(said(error))
        vars(plain).update(retry=getattr(error, "retry", True), away=getattr(error, "away", False))
        return plain
    return error


def _silent(event: Event) -> None:
    """Say nothing."""
