from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, get_type_hints

import pytest

from hpm.config import Pretrain
from hpm.evaluate.detect.config import Detect, VitDetRecipe
from hpm.presets import PRESETS
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
    assert built["random"].encoder == built["pretrain"].encoder
    assert built["random"].data == built["pretrain"].data
    assert built["pixels"].data == replace(built["pretrain"].data, image_size=32)
    assert TRAINER.check(built["pretrain"], 1) is None


def test_preset__base_has_the_official_numbers() -> None:
    short, long = _pretrain("vit_base_in1k_200ep"), _pretrain("vit_base_in1k_800ep")
    assert (short.epochs, short.optim.batch_size, short.optim.accumulate) == (200, 2048, 8)
    assert (long.epochs, long.optim.batch_size, long.optim.accumulate) == (800, 256, 1)
    assert (short.num_patches, short.num_hidden(0.75)) == (196, 147)
    assert short.mask.hard_range == (0.0, 0.5)


def test_preset__large_differs_in_its_encoder_alone() -> None:
    base, large = _pretrain("vit_base_in1k_800ep"), _pretrain("vit_large_in1k_800ep")
    assert (large.encoder.width, large.encoder.depth, large.encoder.heads) == (1024, 24, 16)
    assert (large.optim, large.decoder, large.epochs) == (base.optim, base.decoder, base.epochs)


def test_preset__pico_schedules_hard_patches_from_its_first_epoch() -> None:
    config = _pretrain("vit_pico_32px")
    assert (config.num_patches, config.num_hidden(0.75)) == (64, 48)
    assert config.mask.hard_range == (0.0, 0.5)


def test_preset__detects_as_vitdet_does() -> None:
    base, large = (
        _build(Detect, PRESETS[name]["detect"])
        for name in ("vit_base_in1k_200ep", "vit_large_in1k_800ep")
    )
    assert base.optim == VitDetRecipe()
    assert (base.image_size, base.drop_path, base.optim.layer_decay) == (1024, 0.1, 0.7)
    assert (large.drop_path, large.optim.layer_decay) == (0.4, 0.8)
    assert large.optim.base_lr == base.optim.base_lr
