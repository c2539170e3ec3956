"""Detection as an evaluation: trains the detector, searches the validation split, and scores.

Views, drop paths and the choice of anchors and regions depend on (seed, epoch, image) alone, so
they are the same for any number of workers. Losses are means over the anchors and regions of a
worker's images, as in torchvision; where images have fewer than are asked for, a mean over fewer
images weighs each a little otherwise, so with another number of workers more differs than the order
of sums. Letters: B images, P branches of the encoder.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, final

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hpm.checkpoint import load_state, save_state
from hpm.data.object_sources import open_objects
from hpm.data.objects import ObjectImages, Truth
from hpm.data.sampling import Shares, load, steps_per_epoch, training_keys
from hpm.determinism import settle
from hpm.distributed import Worker, all_mean, this_worker
from hpm.evaluate.detect.batches import JitteredBatch, JitteredViews
from hpm.evaluate.detect.config import Detect
from hpm.evaluate.detect.found import Finds, write_results
from hpm.evaluate.detect.network import Detector
from hpm.evaluate.drop_path import hand_coins, replace_drop_paths
from hpm.evaluate.features import require_encoder
from hpm.evaluate.training import Training
from hpm.progress import Place, Progress, Result, StageRun
from hpm.randomness import Purpose, generator
from hpm.tracing import digest
from hpm.weights import load_encoder

__all__ = ["run"]


def run(
    config: Detect,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Train, an update a step; then search the validation split, a batch of images a step.

    About 200 of the updates have metrics: `loss` and its five parts, `grad_norm`, `lr`. The result
    holds COCO's `box_ap`, `mask_ap` and `box_ap50` in percent (0 to 100), of the last weights (or
    their average), never of the best ones; its export keeps all that was found. A trace has
    `weights`, `optimizer` and `samples`, those of this worker in the update; then `state`, what was
    found so far.

    Raises:
        DataError: the inputs are no encoder, or the data set is absent, unfit, unreadable or, for
            training, smaller than a batch.
        ConfigError: `image_size` does not fit the encoder's patches.
        NonFiniteLossError: the loss is not finite.
    """
    assert inputs is not None, "a detector needs an exported encoder"
    settle(place.threads)
    work = _Work.start(config, seed=seed, place=place, inputs=inputs)
    if resume is not None:
        work.restore(resume)
    batches = work.batches(place.loaders)
    while work.training.done < work.training.total:
        if should_stop():
            return None
        metrics, samples = work.update(batches)
        yield Progress(work.done, work.total, metrics, work.save, partial(work.trace, samples))
    searching = work.search(place.loaders)
    while work.finds.done < work.finds.steps:
        if should_stop():
            return None
        next(searching)
        yield Progress(work.done, work.total, {}, work.save, work.trace_finds)
    return work.result()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The parts of a run."""

    config: Detect
    seed: int
    worker: Worker
    source: ObjectImages
    truth: Truth
    learner: "_Learner"
    training: Training[JitteredBatch]
    finds: Finds

    @classmethod
    def start(cls, config: Detect, *, seed: int, place: Place, inputs: Path) -> Self:
        # The detector's own seed, for its order and views are not to be those of pretraining.
        own_seed = int(generator(Purpose.PROBE, seed=seed).integers(2**63))
        worker = this_worker()
        trained_on = require_encoder(inputs, config.role, evaluation="detect").data
        source, queries = open_objects((config.data or trained_on).name, place.data)
        epoch_steps = steps_per_epoch(len(source), config.optim.batch_size)
        detector = _build(config, inputs, seed=own_seed, classes=len(source.classes))
        learner = _Learner(detector.to(worker.device), worker.device)
        return cls(
            config=config,
            seed=own_seed,
            worker=worker,
            source=source,
            truth=queries.truth(),
            learner=learner,
            training=Training(
                detector,
                detector.pyramid.encoder,
                config.optim,
                learner.loss,
                epoch_steps=epoch_steps,
            ),
            finds=Finds(queries),
        )

    @property
    def done(self) -> int:
        return self.training.done + self.finds.done

    @property
    def total(self) -> int:
        return self.training.total + self.finds.steps

    def batches(self, loaders: int) -> Iterator[JitteredBatch]:
        """This worker's parts of the updates still to be done, one after the other."""
        optim, worker = self.config.optim, self.worker
        shares = Shares(optim.batch_size, optim.accumulate, worker.rank, worker.world)
        steps = range(self.training.done, self.training.total)
        keys = training_keys(len(self.source), steps, seed=self.seed, shares=shares)
        paths = len(self.learner.paths)
        return load(
            JitteredViews(self.source, self.config, self.seed, paths), keys, loaders=loaders
        )

    def update(self, batches: Iterator[JitteredBatch]) -> tuple[dict[str, float], list[Tensor]]:
        """Metrics of the next update, and the images that it was taken on."""
        parts = [next(batches) for _ in range(self.config.optim.accumulate)]
        metrics = self.training.update(parts)
        if metrics:
            metrics |= self.learner.means()
        self.learner.losses.clear()
        return metrics, [part.indices for part in parts]

    def search(self, loaders: int) -> Iterator[None]:
        detector = self.training.evaluated
        assert isinstance(detector, Detector)
        return self.finds.fill(
            detector, self.worker, image_size=self.config.image_size, loaders=loaders
        )

    def save(self, folder: Path) -> None:
        save_state(folder, {"training": self.training.state(), "finds": self.finds.state()})

    def restore(self, folder: Path) -> None:
        state = load_state(folder, torch.device("cpu"))
        self.training.restore(state["training"])
        self.finds.restore(state["finds"])

    def trace(self, samples: list[Tensor]) -> dict[str, str]:
        return {**self.training.trace(), "samples": digest(samples)}

    def trace_finds(self) -> dict[str, str]:
        return {"state": digest(self.finds.state())}

    def result(self) -> Result:
        metrics = self.finds.metrics(self.truth)
        return Result(metrics, lambda folder: write_results(folder, self.finds, self.truth))


@final
class _Learner:
    """The loss of a part, and what it was made of since these were last cleared."""

    def __init__(self, detector: Detector, device: torch.device) -> None:
        self.detector = detector
        self.device = device
        self.paths = replace_drop_paths(detector)
        self.losses: list[dict[str, Tensor]] = []

    def loss(self, part: JitteredBatch) -> Tensor:
        hand_coins(self.paths, part.coins.to(self.device))
        losses = self.detector.losses(
            part.images.to(self.device, non_blocking=True),
            part.targets(self.device),
            part.seeds.tolist(),
        )
        self.losses.append({name: loss.detach() for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def means(self) -> dict[str, float]:
        """Of each loss, over parts and workers."""
        names = list(self.losses[0])
        table = torch.tensor([[part[name] for name in names] for part in self.losses])
        means = all_mean(table.mean(dim=0).to(self.device))
        return dict(zip(names, means.tolist(), strict=True))


def _build(config: Detect, inputs: Path, *, seed: int, classes: int) -> Detector:
    # torchvision draws initial weights from PyTorch's global generator, which stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        encoder, description = load_encoder(
            inputs, role=config.role, image_size=config.image_size, drop_path=config.drop_path
        )
        assert isinstance(encoder, VisionTransformer)
        config.require(description.encoder)
        return Detector(encoder, config, classes=classes)
