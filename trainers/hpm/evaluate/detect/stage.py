"""Detection as an evaluation: trains the detector, searches the validation split, and scores.

Views, drop paths and the choice of anchors and regions depend on (seed, epoch, image) alone, so
they are the same for any number of workers. Losses are means over the anchors and regions of a
worker's images, as in torchvision; where images have fewer than are asked for, a mean over fewer
images weighs each a little otherwise, so with another number of workers more differs than the order
of sums. Letters: B images, P branches of the encoder.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hpm.data.object_sources import open_objects
from hpm.data.serving import steps_per_epoch
from hpm.determinism import settle
from hpm.distributed import this_worker
from hpm.evaluate.detect.batches import JitteredBatch, JitteredViews
from hpm.evaluate.detect.config import Detect
from hpm.evaluate.detect.found import Finds, write_results
from hpm.evaluate.detect.network import Detector
from hpm.evaluate.drop_path import DropPath, hand_coins, replace_drop_paths
from hpm.evaluate.features import require_encoder
from hpm.evaluate.supervised import Supervised
from hpm.evaluate.training import Loss, Training
from hpm.progress import Place, Result, StageRun
from hpm.randomness import own_seed
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
    """Train and search the validation split, as `Supervised.run` says.

    Updates with metrics have the five parts of `loss`, too. The result holds COCO's `box_ap`,
    `mask_ap` and `box_ap50` in percent (0 to 100); its export keeps all that was found.

    Raises:
        DataError: the inputs are no encoder, or the data set is absent, unfit, unreadable or, for
            training, smaller than a batch.
        ConfigError: `image_size` or the detector does not fit the encoder's patches.
        NonFiniteLossError: the loss is not finite.
    """
    assert inputs is not None, "a detector needs an exported encoder"
    settle(place.threads)
    work = _start(config, seed=own_seed(seed), place=place, inputs=inputs)
    return (yield from work.run(place=place, resume=resume, should_stop=should_stop))


def _start(config: Detect, *, seed: int, place: Place, inputs: Path) -> Supervised[JitteredBatch]:
    description = require_encoder(inputs, config.role, evaluation="detect")
    config.require(description.encoder)
    source, queries = open_objects((config.data or description.data).name, place.data)
    epoch_steps = steps_per_epoch(len(source), config.optim.batch_size)
    detector = _build(config, inputs, seed=seed, classes=len(source.classes))
    paths = replace_drop_paths(detector)
    training = Training(
        detector.to(this_worker().device),
        detector.pyramid.encoder,
        config.optim,
        _loss(detector, paths),
        epoch_steps=epoch_steps,
    )
    evaluated, finds, truth = training.evaluated, Finds(queries), queries.truth()
    assert isinstance(evaluated, Detector)
    return Supervised(
        training=training,
        views=JitteredViews(source, config, seed, len(paths)),
        scores=finds,
        fill=partial(finds.fill, evaluated, image_size=config.image_size, loaders=place.loaders),
        result=lambda: Result(
            finds.metrics(truth), lambda folder: write_results(folder, finds, truth)
        ),
    )


def _loss(detector: Detector, paths: list[DropPath]) -> Loss[JitteredBatch]:
    device = this_worker().device

    def loss(part: JitteredBatch) -> dict[str, Tensor]:
        hand_coins(paths, part.coins.to(device))
        images_B3SS = part.images.to(device, non_blocking=True)
        return detector.losses(images_B3SS, part.targets(device), part.seeds.tolist())

    return loss


def _build(config: Detect, inputs: Path, *, seed: int, classes: int) -> Detector:
    # torchvision draws initial weights from PyTorch's global generator, which stays as it was.
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of CUDA too.
        torch.default_generator.manual_seed(seed % 2**63)
        encoder, _ = load_encoder(
            inputs, role=config.role, image_size=config.image_size, drop_path=config.drop_path
        )
        assert isinstance(encoder, VisionTransformer)
        return Detector(encoder, config, classes=classes)
