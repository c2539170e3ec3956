"""Files of others are read as tensors and plain values; what they would execute is not executed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch

from hpm.checkpoint import load_state
from hpm.config import Pretrain, Target
from hpm.data.errors import DataError
from hpm.official import read_encoder
from hpm.progress import Place
from hpm.targets import build_target

VIT = "vit_tiny_patch16_224"
Read = Callable[[Path, Pretrain, Place], object]


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def _state(file: Path, config: Pretrain, place: Place) -> object:
    return load_state(file.parent, torch.device("cpu"))


def _reference(file: Path, config: Pretrain, place: Place) -> object:
    return read_encoder(file, config.encoder, image_size=16)


def _teacher(file: Path, config: Pretrain, place: Place) -> object:
    config = replace(config, target=Target(kind="teacher", teacher=VIT))
    return build_target(config, replace(place, data={VIT: file}))


@pytest.mark.parametrize("within", ["alone", "beside weights"])
@pytest.mark.parametrize("read", [_state, _reference, _teacher])
def test_payload__is_not_executed(
    read: Read, within: str, tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    payload: object = Payload(mark)
    if within == "beside weights":
        payload = {"state_dict": {"weight": torch.zeros(2)}, "args": payload}
    torch.save(payload, tmp_path / "state.pt")
    with pytest.raises((DataError, UnpicklingError)):
        read(tmp_path / "state.pt", tiny, tiny_place)
    assert not mark.exists()
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert mark.exists(), "else it shows nothing"
