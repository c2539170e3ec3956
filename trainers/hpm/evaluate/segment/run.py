"""Segmentation with an exported encoder: a head is trained on it, with it or without.

Letters: B images of a part, C classes, S side of a view, U coins of an image, P branches with drop
path.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpm.data.maps import VOID, open_maps
from hpm.data.serving import steps_per_epoch
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
from hpm.evaluate.supervised import Supervised
from hpm.evaluate.training import Loss, Training
from hpm.progress import Place, Result, StageRun
from hpm.randomness import own_seed
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
    """Train and validate, as `Supervised.run` says.

    Both compute in `optim.precision`, but for sums and losses. The result holds `miou` and
    `pixel_accuracy` in percent (0 to 100); its export keeps the pixels of each class.

    Raises:
        DataError: what was exported is no encoder or has no such role, or a split is absent,
            unreadable, without annotations or, for training, smaller than a batch.
        ConfigError: a crop is no whole number of the encoder's patches, or it has too few layers.
        NonFiniteLossError: the loss of an update with metrics is not finite.
    """
    assert inputs is not None, "segmentation needs an exported encoder"
    settle(place.threads)
    work = _start(config, seed=own_seed(seed), place=place, inputs=inputs)
    return (yield from work.run(place=place, resume=resume, should_stop=should_stop))


def _start(config: Segment, *, seed: int, place: Place, inputs: Path) -> Supervised[Part]:
    description = require_encoder(inputs, config.role, evaluation="segment")
    data = config.data or MapData(name=description.data.name)
    source, validation = (
        open_maps(data.name, split, place.data, data.said) for split in ("train", "val")
    )
    network = _network(config, inputs, description, classes=len(source.names), seed=seed)
    paths = replace_drop_paths(network.encoder)
    training = Training(
        network,
        network.encoder,
        config.optim,
        _loss(network, paths, config),
        epoch_steps=steps_per_epoch(len(source), config.optim.batch_size),
    )
    coins = len(paths) + sum(drop.channels for drop in network.channel_drops)
    scores = Scores(WholeViews(source=validation, short_side=config.short_side))
    guesses = partial(_guesses, config, training.evaluated)
    return Supervised(
        training=training,
        views=Views(source=source, config=config, coins=coins, seed=seed),
        scores=scores,
        fill=partial(scores.fill, guesses, loaders=place.loaders),
        result=lambda: Result(scores.metrics(), scores.write),
    )


def _guesses(config: Segment, network: nn.Module, batch: Whole) -> list[Tensor]:
    """The best class of each pixel, at the annotations' sizes."""
    reduced = config.optim.precision == "bfloat16"
    scores = score_images(
        network, batch.images, crop=config.crop, stride=config.stride, reduced=reduced
    )
    return [guess(x, *map_.shape) for x, map_ in zip(scores, batch.maps, strict=True)]


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


def _loss(network: Segmenter, paths: list[DropPath], config: Segment) -> Loss[Part]:
    """Cross-entropy, a mean over all pixels to which void ones add nothing, as officially.

    So it is a mean over images too, however they are dealt.
    """
    device, reduced = this_worker().device, config.optim.precision == "bfloat16"

    def loss(part: Part) -> dict[str, Tensor]:
        images_BCSS, maps_BSS, coins_BU = (
            values.to(device, non_blocking=True) for values in part[:3]
        )
        _hand_out(network, paths, coins_BU)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            found = network(images_BCSS)
        main, *others = (_pixel_loss(scores.float(), maps_BSS) for scores in found)
        return {"loss": main + config.auxiliary * sum(others)}

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
