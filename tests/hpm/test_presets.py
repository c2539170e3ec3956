from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import pytest

from hpm.config import Data, Ema, Optim, Pretrain
from hpm.evaluate.config import Knn, Linear
from hpm.evaluate.detect.config import Detect, VitDetRecipe
from hpm.evaluate.finetune_config import Finetune
from hpm.evaluate.segment.config import Segment
from hpm.presets import PRESETS
from hpm.schedules import peak_learning_rate
from hpm.trainer import TRAINER


def _build(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    assert settings.keys() <= hints.keys()
    return kind(
        **{
            name: _build(hints[name], value) if is_dataclass(hints[name]) else value
            for name, value in settings.items()
        }
    )


def _pretrain(name: str) -> Pretrain:
    config = _build(Pretrain, PRESETS[name]["pretrain"])
    assert isinstance(config, Pretrain)
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_preset__is_valid_for_every_stage(name: str) -> None:
    stages = TRAINER.stages()
    assert PRESETS[name].keys() == stages.keys()
    built = {stage: _build(stages[stage].config_type, s) for stage, s in PRESETS[name].items()}
    assert TRAINER.check(built["pretrain"], 1) is None
    assert TRAINER.check(built["finetune"], 1) is None


def test_preset__base_has_the_official_numbers() -> None:
    short, long = _pretrain("vit_base_in1k_200ep"), _pretrain("vit_base_in1k_800ep")
    assert (short.epochs, short.optim.batch_size, short.optim.accumulate) == (200, 2048, 8)
    assert (long.epochs, long.optim.batch_size, long.optim.accumulate) == (800, 256, 1)
    assert (short.num_patches, short.num_hidden(0.75)) == (196, 147)
    assert short.mask.hard_range == (0.0, 0.5)


def test_defaults__of_pretraining_are_the_official_ones() -> None:
    optim, ema, data = Optim(), Ema(), Data()
    assert (optim.base_lr, optim.warmup_epochs, optim.weight_decay) == (1.5e-4, 40, 0.05)
    assert (optim.batch_size, optim.betas, optim.clip_norm) == (2048, (0.9, 0.95), 5.0)
    assert (ema.start, ema.end, ema.ramp_epochs) == (0.999, 0.9999, 100)
    assert (data.name, data.image_size, data.min_crop, data.flip) == ("imagenet", 224, 0.2, True)


def test_defaults__of_the_probes_are_the_official_ones() -> None:
    linear, knn = Linear(), Knn()
    assert (linear.epochs, linear.warmup_epochs, linear.base_lr) == (100, 10, 1e-3)
    assert (linear.batch_size, linear.momentum, linear.weight_decay) == (2048, 0.9, 0.0)
    assert (linear.augment, linear.pool) == (True, "cls")
    assert (knn.k, knn.temperature, knn.pool) == ((10, 20, 100, 200), 0.07, "cls")


@pytest.mark.parametrize("name", ["vit_base_in1k_200ep", "vit_large_in1k_800ep"])
def test_preset__leaves_fine_tuning_and_probes_as_they_are_officially(name: str) -> None:
    tuned, preset = _build(Finetune, PRESETS[name]["finetune"]), PRESETS[name]
    optim, augment = tuned.optim, tuned.augment
    assert (optim.base_lr, optim.weight_decay, optim.warmup_epochs) == (5e-4, 0.05, 5)
    assert (optim.min_lr, optim.decay, optim.clip_norm) == (1e-6, "cosine", None)
    assert (tuned.drop_path, augment.rand_magnitude, augment.erasing) == (0.1, 9, 0.25)
    assert (augment.mixup, augment.cutmix, augment.smoothing) == (0.8, 1.0, 0.1)
    assert (preset["linear"], preset["knn"]) == ({}, {})


def test_preset__segments_after_the_blocks_of_mmsegmentation() -> None:
    base, long, large = (
        _build(Segment, PRESETS[name]["segment"]).layers
        for name in ("vit_base_in1k_200ep", "vit_base_in1k_800ep", "vit_large_in1k_800ep")
    )
    assert (base, long, large) == ((4, 6, 8, 12), (4, 6, 8, 12), (8, 12, 16, 24))


@pytest.mark.parametrize(
    ("name", "crop", "warmup", "clip", "epochs"),
    [
        ("simmim_base_in1k_800ep", 0.67, 10, 5.0, 800),
        ("maskfeat_base_in1k_300ep", 0.5, 30, 0.02, 300),
        ("beit_base_in1k_300ep", 0.08, 10, 3.0, 300),
    ],
)
def test_preset__baselines_train_as_their_authors_do(
    name: str, crop: float, warmup: float, clip: float, epochs: int
) -> None:
    config = _pretrain(name)
    optim = config.optim
    assert (config.data.min_crop, config.epochs) == (crop, epochs)
    assert (optim.warmup_epochs, optim.clip_norm) == (warmup, clip)
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.999), 0.05)


def test_preset__large_differs_in_its_encoder_alone() -> None:
    base, large = _pretrain("vit_base_in1k_800ep"), _pretrain("vit_large_in1k_800ep")
    assert (large.encoder.width, large.encoder.depth, large.encoder.heads) == (1024, 24, 16)
    assert (large.optim, large.decoder, large.epochs) == (base.optim, base.decoder, base.epochs)


def test_preset__fine_tuning_has_the_official_numbers() -> None:
    base, large = (
        _build(Finetune, PRESETS[name]["finetune"]).optim
        for name in ("vit_base_in1k_800ep", "vit_large_in1k_800ep")
    )
    assert (base.epochs, base.batch_size, base.layer_decay) == (100, 48 * 8, 0.8)
    assert (large.epochs, large.batch_size, large.layer_decay) == (50, 64 * 8, 0.8)


def test_preset__pico_schedules_hard_patches_from_its_first_epoch() -> None:
    config = _pretrain("vit_pico_32px")
    assert (config.num_patches, config.num_hidden(0.75)) == (64, 48)
    assert config.mask.hard_range == (0.0, 0.5)


def test_preset__baselines_hide_what_their_authors_hide() -> None:
    simmim, maskfeat, beit = map(
        _pretrain, ("simmim_base_in1k_800ep", "maskfeat_base_in1k_300ep", "beit_base_in1k_300ep")
    )
    assert (simmim.num_units, simmim.num_hidden(simmim.mask.ratio)) == (49, 30)
    assert maskfeat.num_hidden(maskfeat.mask.ratio) == 78
    assert beit.num_hidden(beit.mask.ratio) == 75
    assert {config.decoder.depth for config in (simmim, maskfeat, beit)} == {0}
    assert peak_learning_rate(simmim.optim) == pytest.approx(4e-4)
    assert peak_learning_rate(maskfeat.optim) == pytest.approx(1.6e-3)
    assert peak_learning_rate(beit.optim) == pytest.approx(1.5e-3)


def test_preset__detects_as_vitdet_does() -> None:
    base, large = (
        _build(Detect, PRESETS[name]["detect"])
        for name in ("vit_base_in1k_200ep", "vit_large_in1k_800ep")
    )
    assert base.optim == VitDetRecipe()
    assert (base.image_size, base.drop_path, base.optim.layer_decay) == (1024, 0.1, 0.7)
    assert (large.drop_path, large.optim.layer_decay) == (0.4, 0.8)
    assert large.optim.base_lr == base.optim.base_lr
