"""Segmentation with an exported encoder: a head is trained on it, with it or without.

Validation is one pass at the end, of the last weights or of their average, never of the best ones.
Letters: B images of a part, C classes, S side of a view, U coins of an image, P branches with drop
path.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hpm.checkpoint import load_state, save_state
from hpm.data.maps import VOID, open_maps
from hpm.data.sampling import Shares, load, steps_per_epoch, training_keys
from hpm.determinism import settle
from hpm.distributed import this_worker
from hpm.evaluate.drop_path import DropPath, hand_coins, replace_drop_paths
from hpm.evaluate.features import require_encoder
from hpm.evaluate.segment.config import MapData, Segment
from hpm.evaluate.segment.heads import Segmenter, build_head
from hpm.evaluate.segment.resizing import resize
from hpm.evaluate.segment.scores import Scores
from hpm.evaluate.segment.sliding import guess, score_images
from hpm.evaluate.segment.views import Part, Views, Whole, WholeViews
from hpm.evaluate.training import Training
from hpm.progress import Place, Progress, Result, StageRun
from hpm.randomness import Purpose, generator
from hpm.tracing import digest
from hpm.weights import Description, load_encoder

__all__ = ["run"]


def run(
    config: Segment,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Train, an update a step; then validate, a batch a step.

    About 200 updates have metrics: `loss`, `grad_norm`, `lr`. The result holds `miou` and
    `pixel_accuracy` in percent (0 to 100); its export keeps the pixels of each class. A trace of an
    update has `weights`, `optimizer`, where there is one `average`, and of this worker `samples`
    and `views`, all that the network was given; one of validation has `state`, the pixels so far.

    Raises:
        DataError: what was exported is no encoder or has no such role, or a split is absent,
            unreadable, without annotations or, for training, smaller than a batch.
        ConfigError: a crop is no whole number of the encoder's patches, or it has too few layers.
        NonFiniteLossError: the loss of an update with metrics is not finite.
    """
    assert inputs is not None, "segmentation needs an exported encoder"
    settle(place.threads)
    work = _Work.start(config, seed=seed, place=place, inputs=inputs)
    if resume is not None:
        work.restore(resume)
    training, scores = work.training, work.scores
    parts = work.parts(place.loaders)
    while training.done < training.total:
        if should_stop():
            return None
        given = list(islice(parts, config.optim.accumulate))
        metrics = training.update(given)
        trace = partial(work.trace_update, given)
        yield Progress(work.done, work.total, metrics, work.save, trace)
    training.evaluated.eval()
    filling = scores.fill(work.guesses, loaders=place.loaders)
    while scores.done < scores.steps:
        if should_stop():
            return None
        next(filling)
        yield Progress(work.done, work.total, {}, work.save, work.trace_scores)
    return Result(scores.metrics(), scores.write)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The parts of a run."""

    config: Segment
    training: Training[Part]
    views: Views
    scores: Scores

    @classmethod
    def start(cls, config: Segment, *, seed: int, place: Place, inputs: Path) -> Self:
        description = require_encoder(inputs, config.role, evaluation="segment")
        data = config.data or MapData(name=description.data.name)
        source, validation = (
            open_maps(data.name, split, place.data, data.said) for split in ("train", "val")
        )
        # Its own seed, for its order and crops are not to be those of pretraining.
        own_seed = int(generator(Purpose.PROBE, seed=seed).integers(2**63))
        network = _network(config, inputs, description, classes=len(source.names), seed=own_seed)
        paths = replace_drop_paths(network.encoder)
        training = Training(
            network,
            network.encoder,
            config.optim,
            _loss(network, paths, config),
            epoch_steps=steps_per_epoch(len(source), config.optim.batch_size),
        )
        coins = len(paths) + sum(drop.channels for drop in network.channel_drops)
        return cls(
            config=config,
            training=training,
            views=Views(source=source, config=config, coins=coins, seed=own_seed),
            scores=Scores(WholeViews(source=validation, short_side=config.short_side)),
        )

    @property
    def done(self) -> int:
        return self.training.done + self.scores.done

    @property
    def total(self) -> int:
        return self.training.total + self.scores.steps

    def parts(self, loaders: int) -> Iterator[Part]:
        """This worker's parts of each update still to be done."""
        recipe, worker = self.training.recipe, this_worker()
        keys = training_keys(
            len(self.views.source),
            range(self.training.done, self.training.total),
            seed=self.views.seed,
            shares=Shares(recipe.batch_size, recipe.accumulate, worker.rank, worker.world),
        )
        return load(self.views, keys, loaders=loaders)

    def guesses(self, batch: Whole) -> list[Tensor]:
        """The best class of each pixel, at the annotations' sizes."""
        scores = score_images(
            self.training.evaluated,
            batch.images,
            crop=self.config.crop,
            stride=self.config.stride,
            reduced=self.config.optim.precision == "bfloat16",
        )
        return [guess(x, *map_.shape) for x, map_ in zip(scores, batch.maps, strict=True)]

    def save(self, folder: Path) -> None:
        save_state(folder, {"training": self.training.state(), "scores": self.scores.state()})

    def restore(self, folder: Path) -> None:
        state = load_state(folder, torch.device("cpu"))
        self.training.restore(state["training"])
        self.scores.restore(state["scores"])

    def trace_update(self, given: Sequence[Part]) -> dict[str, str]:
        return {
            **self.training.trace(),
            "samples": digest([part.indices for part in given]),
            "views": digest([part[:3] for part in given]),
        }

    def trace_scores(self) -> dict[str, str]:
        return {"state": digest(self.scores.state())}


def _network(
    config: Segment, inputs: Path, description: Description, *, classes: int, seed: int
) -> Segmenter:
    settings = description.encoder
    layers = config.blocks(settings)
    config.require(settings)
    encoder, _ = load_encoder(
        inputs, role=config.role, image_size=config.crop, drop_path=config.drop_path
    )
    encoder.requires_grad_(not config.frozen)
    head = build_head(config, width=settings.width, classes=classes, seed=seed)
    return Segmenter(encoder, head, layers).to(this_worker().device)


def _loss(network: Segmenter, paths: list[DropPath], config: Segment) -> Callable[[Part], Tensor]:
    """Cross-entropy, a mean over all pixels to which void ones add nothing, as officially.

    So it is a mean over images too, however they are dealt.
    """
    device, reduced = this_worker().device, config.optim.precision == "bfloat16"

    def loss(part: Part) -> Tensor:
        images_BCSS, maps_BSS, coins_BU = (
            values.to(device, non_blocking=True) for values in part[:3]
        )
        _hand_out(network, paths, coins_BU)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            found = network(images_BCSS)
        main, *others = (_pixel_loss(scores.float(), maps_BSS) for scores in found)
        return main + config.auxiliary * sum(others)

    return loss


def _hand_out(network: Segmenter, paths: list[DropPath], coins_BU: Tensor) -> None:
    """The first columns are the branches', the next ones those of each drop of channels."""
    hand_coins(paths, coins_BU)
    first = len(paths)
    for drop in network.channel_drops:
        drop.coins_BD = coins_BU[:, first : first + drop.channels]
        first += drop.channels


def _pixel_loss(scores_BCHW: Tensor, maps_BSS: Tensor) -> Tensor:
    scores_BSSC = resize(scores_BCHW, *maps_BSS.shape[1:]).permute(0, 2, 3, 1)
    # Flat, for of two dimensions CUDA has no deterministic loss.
    flat = scores_BSSC.flatten(0, 2), maps_BSS.flatten().long()
    return cross_entropy(*flat, ignore_index=VOID, reduction="sum") / maps_BSS.numel()
