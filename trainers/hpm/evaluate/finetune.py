"""Fine-tuning of an exported encoder, after the official recipe.

All of its weights are trained, under strong augmentation. What an image is shown as, which branches
it skips and what it is mixed with follow from the seed, the epoch and the image, or the step.
Validation is one pass at the end, of the last weights or of their average, never of the best ones.
Letters: B images of a part, C classes, P branches with drop path, N images, K guesses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self, final

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpm.checkpoint import load_state, save_state
from hpm.config import Data
from hpm.data.sampling import Shares, load, steps_per_epoch, training_keys
from hpm.data.source import open_source
from hpm.determinism import settle
from hpm.distributed import this_worker
from hpm.evaluate.accuracy import best_classes, top_percent, write_predictions
from hpm.evaluate.augment import Distortion
from hpm.evaluate.config import EvalData
from hpm.evaluate.drop_path import DropPath, hand_coins, replace_drop_paths
from hpm.evaluate.features import Features, FrozenEncoder, require_encoder
from hpm.evaluate.finetune_config import Finetune
from hpm.evaluate.finetune_views import Part, Views
from hpm.evaluate.training import Training
from hpm.progress import Place, Progress, Result, StageRun
from hpm.randomness import Purpose, generator
from hpm.tracing import digest
from hpm.weights import Description, load_encoder

__all__ = ["run"]


def run(
    config: Finetune,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Train, an update a step; then validate, a batch a step.

    About 200 updates have metrics: `loss`, `grad_norm`, `lr`. The result holds `top1` and `top5` in
    percent (0 to 100); its export keeps the guesses. A trace of an update has `weights`,
    `optimizer`, where there is one `average`, and of this worker `samples` and `views`, all that
    the network was given; one of validation has `state`, the scores so far.

    Raises:
        DataError: what was exported is no encoder or has no such role, or a split is absent,
            unreadable or, for training, smaller than a batch.
        ConfigError: images of this size are no whole number of the encoder's patches.
        NonFiniteLossError: the loss of an update with metrics is not finite.
    """
    assert inputs is not None, "fine-tuning needs an exported encoder"
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
    filling = scores.fill(work.classifier, loaders=place.loaders)
    while scores.done < scores.steps:
        if should_stop():
            return None
        next(filling)
        yield Progress(work.done, work.total, {}, work.save, work.trace_scores)
    return work.result()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The parts of a run. `scores` are those of the validation images, which `classifier` gives."""

    training: Training[Part]
    views: Views
    classifier: FrozenEncoder
    scores: Features

    @classmethod
    def start(cls, config: Finetune, *, seed: int, place: Place, inputs: Path) -> Self:
        data = _data(config, require_encoder(inputs, config.role, evaluation="finetune"))
        source = open_source(data.name, "train", place.data)
        classes, size = len(source.classes), config.optim.batch_size
        # Its own seed, for its order and crops are not to be those of pretraining.
        own_seed = int(generator(Purpose.PROBE, seed=seed).integers(2**63))
        network = _network(
            config, inputs, image_size=data.image_size, classes=classes, seed=own_seed
        )
        paths = replace_drop_paths(network)
        loss = _loss(network, paths, reduced=config.optim.precision == "bfloat16")
        training = Training(
            network, network, config.optim, loss, epoch_steps=steps_per_epoch(len(source), size)
        )
        views = Views(
            source=source,
            data=data,
            augment=config.augment,
            distortion=Distortion.of(config.augment, data.image_size),
            branches=len(paths),
            seed=own_seed,
        )
        device, classify = this_worker().device, training.evaluated
        return cls(
            training=training,
            views=views,
            classifier=FrozenEncoder(data=data, width=classes, device=device, function=classify),
            scores=Features(open_source(data.name, "val", place.data), classes),
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

    def result(self) -> Result:
        guesses_NK, labels_N = best_classes(self.scores.rows_ND), self.scores.labels_N
        metrics = {f"top{n}": top_percent(guesses_NK, labels_N, n) for n in (1, 5)}
        return Result(metrics, lambda folder: write_predictions(folder, guesses_NK, labels_N))


def _data(config: Finetune, description: Description) -> Data:
    """The images that the settings ask for, or those that the encoder was trained on."""
    config.require(description.encoder)
    trained = description.data
    size = config.image_size or trained.image_size
    named = config.data or EvalData(name=trained.name, flip=trained.flip)
    return Data(name=named.name, image_size=size, min_crop=named.min_crop, flip=named.flip)


def _network(
    config: Finetune, inputs: Path, *, image_size: int, classes: int, seed: int
) -> VisionTransformer:
    """Official: the new layer's weights are as good as 0, and the new norm weighs nothing."""
    network, _ = load_encoder(
        inputs,
        role=config.role,
        image_size=image_size,
        drop_path=config.drop_path,
        classes=classes,
    )
    draws = torch.Generator().manual_seed(int(generator(Purpose.INIT, seed=seed).integers(2**63)))
    head = network.get_classifier()
    assert isinstance(head, nn.Linear)
    nn.init.trunc_normal_(head.weight, std=2e-5, generator=draws)
    nn.init.zeros_(head.bias)
    return network.to(this_worker().device)


def _loss(network: nn.Module, paths: list[DropPath], *, reduced: bool) -> Callable[[Part], Tensor]:
    """Mean cross-entropy to the targets, the network's passes in bfloat16 where `reduced`."""
    device = this_worker().device

    def loss(part: Part) -> Tensor:
        images_BCHW, targets_BC, coins_BP = (
            values.to(device, non_blocking=True) for values in part[:3]
        )
        hand_coins(paths, coins_BP)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            scores_BC = network(images_BCHW)
        return cross_entropy(scores_BC.float(), targets_BC)

    return loss
