"""Linear probe of a frozen encoder, after the official recipe.

Features are normalised by the batch's mean and deviation (officially of one GPU's 512 images) and
enter one linear layer, trained by SGD with momentum; images that do not fill a last batch wait for
another epoch's order. Crops are drawn as in pretraining (officially by BYOL's rule: one draw, its
sides cut to the image's). Validation counts every image (officially a partial batch is lost). Each
worker computes the same update from the features of all of them. Letters: N images, B of a batch,
D width, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor

from hpm.checkpoint import load_state, save_state
from hpm.config import Data
from hpm.data.loading import training_batches
from hpm.data.sampling import Shares, epoch_order
from hpm.data.serving import steps_per_epoch
from hpm.data.source import Source, open_source
from hpm.determinism import settle
from hpm.distributed import all_gather, this_worker
from hpm.evaluate.accuracy import top_percent, write_predictions
from hpm.evaluate.config import OFFICIAL_MIN_CROP, Linear
from hpm.evaluate.features import Features, FrozenEncoder, load_frozen
from hpm.evaluate.probe import Probe
from hpm.progress import Place, Progress, Result, StageRun
from hpm.randomness import own_seed
from hpm.tracing import digest

__all__ = ["run"]


def run(
    config: Linear,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Extract the features that stay as they are, a batch a step; then train, an update a step.

    The last step of an epoch has the epoch's mean `loss`. The result holds `top1` and `top5` of
    the last epoch's probe in percent (0 to 100), never of the best one; its export keeps the
    guesses. With `augment`, crops are 0.08 or more of an image, which is the official recipe's
    range, unless `data` says otherwise. A trace has `state`, the features so far, while they are
    extracted; then `weights`, `optimizer` and `samples`, those of this worker in the update.

    Raises:
        DataError: a split is absent, unreadable or, for training, smaller than a batch.
        NonFiniteLossError: an epoch's mean loss is not finite.
    """
    assert inputs is not None, "a linear probe needs an exported encoder"
    settle(place.threads)
    work = _Work.start(config, seed=own_seed(seed), place=place, inputs=inputs)
    if resume is not None:
        work.restore(resume)
    for features in work.extracted:
        filling = features.fill(work.encoder, loaders=place.loaders)
        while features.done < features.steps:
            if should_stop():
                return None
            next(filling)
            yield Progress(work.done, work.total, {}, work.save, work.trace_features)
    batches = work.batches(place.loaders)
    while work.done < work.total:
        if should_stop():
            return None
        rows_BD, labels_B, samples = next(batches)
        metrics = work.probe.update(rows_BD, labels_B)
        trace = partial(work.trace_update, samples)
        yield Progress(work.done, work.total, metrics, work.save, trace)
    return work.result()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The parts of a run. `bank` is None where every epoch sees the training images anew."""

    seed: int
    data: Data
    encoder: FrozenEncoder
    source: Source
    bank: Features | None
    queries: Features
    probe: Probe

    @classmethod
    def start(cls, config: Linear, *, seed: int, place: Place, inputs: Path) -> Self:
        encoder = load_frozen(inputs, data=config.data, pool=config.pool, role=config.role)
        source = open_source(encoder.data.name, "train", place.data)
        queries = Features(open_source(encoder.data.name, "val", place.data), encoder.width)
        data = encoder.data
        if config.data is None:
            data = replace(data, min_crop=OFFICIAL_MIN_CROP)
        return cls(
            seed=seed,
            data=data,
            encoder=encoder,
            source=source,
            bank=None if config.augment else Features(source, encoder.width),
            queries=queries,
            probe=Probe(
                config,
                width=encoder.width,
                classes=len(source.classes),
                epoch_steps=steps_per_epoch(len(source), config.batch_size),
                seed=seed,
                device=encoder.device,
            ),
        )

    @property
    def extracted(self) -> tuple[Features, ...]:
        """The splits whose features are computed once."""
        return (self.queries,) if self.bank is None else (self.bank, self.queries)

    @property
    def done(self) -> int:
        return sum(features.done for features in self.extracted) + self.probe.done

    @property
    def total(self) -> int:
        return sum(features.steps for features in self.extracted) + self.probe.total

    def batches(self, loaders: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features [B, D], labels [B] and this worker's samples of each update still to be done."""
        return self._encoded(loaders) if self.bank is None else self._chosen(self.bank)

    def save(self, folder: Path) -> None:
        save_state(folder, {"features": self._features(), "probe": self.probe.state()})

    def trace_features(self) -> dict[str, str]:
        return {"state": digest(self._features())}

    def trace_update(self, samples: Tensor) -> dict[str, str]:
        return {**self.probe.trace(), "samples": digest(samples)}

    def restore(self, folder: Path) -> None:
        state = load_state(folder, torch.device("cpu"))
        for features, kept in zip(self.extracted, state["features"], strict=True):
            features.restore(kept)
        self.probe.restore(state["probe"])

    def result(self) -> Result:
        guesses_NK = self.probe.guesses(self.queries.rows_ND)
        labels_N = self.queries.labels_N
        metrics = {f"top{n}": top_percent(guesses_NK, labels_N, n) for n in (1, 5)}
        return Result(metrics, lambda folder: write_predictions(folder, guesses_NK, labels_N))

    def _features(self) -> list[dict[str, Tensor]]:
        return [features.state() for features in self.extracted]

    def _encoded(self, loaders: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = this_worker()
        shares = Shares(self.probe.config.batch_size, rank=worker.rank, world=worker.world)
        steps = range(self.probe.done, self.probe.total)
        for batch in training_batches(
            self.source, self.data, steps, seed=self.seed, shares=shares, loaders=loaders
        ):
            rows_BD = self.encoder.encode(batch.images)
            labels_B = all_gather(batch.labels.to(rows_BD.device))
            yield all_gather(rows_BD), labels_B, batch.indices

    def _chosen(self, bank: Features) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size, steps = self.probe.config.batch_size, self.probe.epoch_steps
        first_epoch, first = divmod(self.probe.done, steps)
        for epoch in range(first_epoch, self.probe.config.epochs):
            order = torch.from_numpy(epoch_order(len(self.source), seed=self.seed, epoch=epoch))
            batches = torch.split(order[: steps * size], size)
            for batch_B in batches[first if epoch == first_epoch else 0 :]:
                device = self.encoder.device
                rows_BD, labels_B = bank.rows_ND[batch_B], bank.labels_N[batch_B]
                yield rows_BD.to(device), labels_B.to(device), batch_B
