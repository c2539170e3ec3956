"""Fine-tuning of an exported encoder, after the official recipe.

All of its weights are trained, under strong augmentation. What an image is shown as, which branches
it skips and what it is mixed with follow from the seed, the epoch and the image, or the step.
Letters: B images of a part, C classes, P branches with drop path, N images, K guesses.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpm.config import Data
from hpm.data.serving import steps_per_epoch
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
from hpm.evaluate.supervised import Supervised
from hpm.evaluate.training import Loss, Training
from hpm.progress import Place, Result, StageRun
from hpm.randomness import Purpose, generator, own_seed
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
    """Train and validate, as `Supervised.run` says.

    Training computes in `optim.precision`, validation in float32. The result holds `top1` and
    `top5` in percent (0 to 100); its export keeps the guesses.

    Raises:
        DataError: what was exported is no encoder or has no such role, or a split is absent,
            unreadable or, for training, smaller than a batch.
        ConfigError: images of this size are no whole number of the encoder's patches.
        NonFiniteLossError: the loss of an update with metrics is not finite.
    """
    assert inputs is not None, "fine-tuning needs an exported encoder"
    settle(place.threads)
    work = _start(config, seed=own_seed(seed), place=place, inputs=inputs)
    return (yield from work.run(place=place, resume=resume, should_stop=should_stop))


def _start(config: Finetune, *, seed: int, place: Place, inputs: Path) -> Supervised[Part]:
    data = _data(config, require_encoder(inputs, config.role, evaluation="finetune"))
    source = open_source(data.name, "train", place.data)
    classes, size = len(source.classes), config.optim.batch_size
    network = _network(config, inputs, image_size=data.image_size, classes=classes, seed=seed)
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
        seed=seed,
    )
    classifier = FrozenEncoder(
        data=data, width=classes, device=this_worker().device, function=training.evaluated
    )
    scores = Features(open_source(data.name, "val", place.data), classes)
    return Supervised(
        training=training,
        views=views,
        scores=scores,
        fill=partial(scores.fill, classifier, loaders=place.loaders),
        result=partial(_result, scores),
    )


def _result(scores: Features) -> Result:
    guesses_NK, labels_N = best_classes(scores.rows_ND), scores.labels_N
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


def _loss(network: nn.Module, paths: list[DropPath], *, reduced: bool) -> Loss[Part]:
    """Mean cross-entropy to the targets, the network's passes in bfloat16 where `reduced`."""
    device = this_worker().device

    def loss(part: Part) -> dict[str, Tensor]:
        images_BCHW, targets_BC, coins_BP = (
            values.to(device, non_blocking=True) for values in part[:3]
        )
        hand_coins(paths, coins_BP)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            scores_BC = network(images_BCHW)
        return {"loss": cross_entropy(scores_BC.float(), targets_BC)}

    return loss
