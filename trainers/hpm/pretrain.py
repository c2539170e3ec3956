"""The pretraining loop: a generator that takes one optimizer step between two yields.

It holds no random state. Samples, views, masks and initial weights are functions of the seed and
the step, so a run that stops and resumes gives the numbers of one that never stopped.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from hpm.config import Pretrain
from hpm.data.loading import Batch, training_batches
from hpm.data.sampling import Shares
from hpm.data.serving import steps_per_epoch
from hpm.data.source import Source, open_source
from hpm.determinism import settle
from hpm.distributed import Worker, all_mean, this_worker
from hpm.learner import Learner
from hpm.noise import MaskNoise
from hpm.progress import NonFiniteLossError, Place, Progress, Result, StageRun
from hpm.schedules import Scheduled, at_step
from hpm.targets import build_target
from hpm.watch import Watch, look_steps

__all__ = ["run"]

_RECORDS = 200
"""Steps of a run that have metrics, about."""


def run(
    config: Pretrain,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Pretrain, and export the encoders of student and teacher.

    About 200 steps of a run have metrics, the last among them: `loss`, `reconstruction_loss`,
    `predictor_loss`, `grad_norm` (before clipping), `lr`, and with a teacher `ema_momentum`,
    `hard_share`, `hard_share_taken` (of whole patches) and `mask_overlap`, the share of the hidden
    patches that chance alone would have hidden; where training was looked at, those of `Watch`
    too. What was seen then is exported as `figures/`. A trace has `weights`, `teacher` where there
    is one, `optimizer`, and of the step and this worker `samples` and `masks`.

    Raises:
        DataError: the training set is absent, unreadable or smaller than a batch.
        NonFiniteLossError: the loss at a step with metrics is not finite.
    """
    assert inputs is None, "pretraining starts from nothing"
    settle(place.threads)
    worker = this_worker()
    source = open_source(config.data.name, "train", place.data)
    epoch_steps = steps_per_epoch(len(source), config.optim.batch_size)
    total = config.epochs * epoch_steps

    target = build_target(config, place)
    for _ in target.prepare():
        if should_stop():
            return None
    ends = [epoch * epoch_steps for epoch in config.watch.epochs]
    looks = look_steps(total, config.watch.times, ends)
    watch = _watch(config, place, seed=seed, epoch_steps=epoch_steps, worker=worker)
    learner = Learner.start(config, target, watch, seed=seed, worker=worker)
    done, metrics = (0, {}) if resume is None else learner.restore(resume)
    steps = range(done, total)
    batches = _batches(source, config, steps, seed=seed, worker=worker, loaders=place.loaders)
    while done < total:
        if should_stop():
            return None
        now = at_step(config, done, epoch_steps=epoch_steps)
        taken = learner.step(list(islice(batches, config.optim.accumulate)), now)
        done += 1
        recorded = done % max(1, total // _RECORDS) == 0 or done == total or done in looks
        if recorded:
            before = metrics.get("loss")
            metrics = _metrics(taken.means, now, teacher=learner.teacher is not None)
            _require_finite(metrics["loss"], done, before=before)
        if done in looks:
            metrics |= learner.look(done, now)
        save = partial(learner.save, step=done, metrics=metrics)
        trace = partial(learner.trace, taken)
        yield Progress(done, total, metrics if recorded else {}, save, trace)
    return Result(metrics, learner.export)


def _watch(
    config: Pretrain, place: Place, *, seed: int, epoch_steps: int, worker: Worker
) -> Watch | None:
    if not (config.watch.times or config.watch.epochs):
        return None
    source = open_source(config.data.name, "val", place.data)
    return Watch.start(config, source, seed=seed, epoch_steps=epoch_steps, worker=worker)


def _batches(
    source: Source, config: Pretrain, steps: range, *, seed: int, worker: Worker, loaders: int
) -> Iterator[Batch]:
    optim = config.optim
    return training_batches(
        source,
        config.data,
        steps,
        seed=seed,
        shares=Shares(optim.batch_size, optim.accumulate, worker.rank, worker.world),
        draw=MaskNoise(config, steps_per_epoch(len(source), optim.batch_size)),
        loaders=loaders,
    )


def _metrics(means: Mapping[str, Tensor], now: Scheduled, *, teacher: bool) -> dict[str, float]:
    values = all_mean(torch.stack(list(means.values()))).tolist()
    metrics = dict(zip(means, values, strict=True)) | {"lr": now.learning_rate}
    if teacher:
        metrics |= {
            "hard_share": now.hard_share,
            "hard_share_taken": now.num_hard / now.num_masked,
            "ema_momentum": now.momentum,
        }
    return metrics


def _require_finite(loss: float, step: int, *, before: float | None) -> None:
    if not math.isfinite(loss):
        last = "none was recorded" if before is None else f"the last finite one was {before:.6g}"
        raise NonFiniteLossError(
            f"The loss must stay finite, got {loss} at step {step} ({last}). "
            "Lower optim.base_lr, lengthen optim.warmup_epochs or use precision float32."
        )
