"""What stands in for pretraining: an encoder as initialised, one of others, the image itself.

The very same evaluations run on what they export.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor

from hpm.determinism import settle
from hpm.evaluate.config import Checkpoint, Pixels, Random
from hpm.evaluate.features import export_pixels
from hpm.hub import find_file
from hpm.model import VisionTransformer, initialize
from hpm.official import read_encoder
from hpm.progress import Place, Progress, Result, StageRun
from hpm.tracing import digest
from hpm.weights import Description, export_encoder, timm_state

__all__ = ["read_checkpoint", "run_checkpoint", "run_pixels", "run_random"]


def run_random(
    config: Random,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Export, in one step, the very encoder that pretraining with this seed starts from."""
    assert inputs is None, "a reference starts from nothing"
    if should_stop():
        return None
    settle(place.threads)
    encoder = VisionTransformer(config.encoder, image_size=config.data.image_size)
    initialize(encoder, seed=seed)
    if resume is None:
        yield Progress(1, 1, {}, _save_nothing, partial(_trace, encoder.state_dict()))
    description = Description(config.encoder, config.data)
    state = timm_state(encoder)
    return Result({}, lambda folder: export_encoder(folder, description, student=state))


def run_checkpoint(
    config: Checkpoint,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Export, in one step, an encoder that was trained elsewhere; `seed` changes nothing.

    Raises:
        DataError: its file is not at hand, or not of an encoder as configured.
    """
    assert inputs is None, "a reference starts from nothing"
    if should_stop():
        return None
    settle(place.threads)
    state = read_checkpoint(config, place)
    if resume is None:
        yield Progress(1, 1, {}, _save_nothing, partial(_trace, state))
    description = Description(config.encoder, config.data)
    return Result({}, lambda folder: export_encoder(folder, description, student=state))


def read_checkpoint(config: Checkpoint, place: Place) -> dict[str, Tensor]:
    """The state of the encoder that a place calls `config.weights`, named as timm's.

    Raises:
        DataError: its file is not at hand, or not of an encoder as configured.
    """
    path, size = find_file(config.weights, place), config.data.image_size
    return read_encoder(path, config.encoder, image_size=size, role=config.role)


def run_pixels(
    config: Pixels,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Export, in one step, the description of an encoder that leaves images as they are."""
    assert inputs is None, "a reference starts from nothing"
    if should_stop():
        return None
    if resume is None:
        yield Progress(1, 1, {}, _save_nothing, partial(_trace, asdict(config.data)))
    return Result({}, lambda folder: export_pixels(folder, config.data))


def _save_nothing(folder: Path) -> None:
    """All that a reference is follows from its configuration and seed."""


def _trace(exported: Mapping[str, object]) -> dict[str, str]:
    return {"state": digest(exported)}
