"""What a stage needs before it runs: data that serve it, weights, workers that can share it.

All of it is asked when a study is planned. Only what a study really uses is loaded for that: torch
for teachers and checkpoints, nothing heavy for anything else.
"""

from collections.abc import Mapping
from typing import Any, Final

from hpm import config
from hpm.data.errors import DataError
from hpm.data.fingerprint import file_digest, fingerprint
from hpm.data.maps import Classes
from hpm.data.serving import (
    Counts,
    require_labels,
    require_maps,
    require_objects,
    steps_per_epoch,
)
from hpm.evaluate.config import Checkpoint, Knn, Linear, Pixels, Random
from hpm.evaluate.detect.config import Detect, missing
from hpm.evaluate.finetune_config import Augment, Finetune
from hpm.evaluate.recipe import Recipe
from hpm.evaluate.room import require_room
from hpm.evaluate.segment.config import Segment
from hpm.hub import find_file, find_weights
from hpm.progress import Place
from hpm.rules import ConfigError

__all__ = ["digest_of", "misfit", "reads", "unshared"]

_TRIED: Final[set[object]] = set()
"""What stands behind the targets that could be built."""


def reads(settings: Any) -> Mapping[str, str]:
    """The data set, weights and codebook that a stage names itself, by dotted path."""
    names: dict[str, str | None] = {}
    if settings.data is not None:
        names["data.name"] = settings.data.name
    match settings:
        case config.Pretrain(target=target):
            names |= {"target.teacher": target.teacher, "target.codebook": target.codebook}
        case Checkpoint(weights=weights):
            names["weights"] = weights
    return {path: name for path, name in names.items() if name is not None}


def digest_of(path: str, name: str, place: Place) -> str:
    """Digest of the data set, or of the file of weights, that the setting at `path` calls so.

    Raises:
        DataError: it is unknown, absent or unreadable.
    """
    match path:
        case "data.name":
            return fingerprint(name, place.data)
        case "target.teacher":
            return file_digest(find_weights(name, place))
        case _:
            return file_digest(find_file(name, place))


def misfit(settings: Any, parent: Any, place: Place) -> str | None:
    """Why a stage cannot run on what a stage of `parent` exports; None where it can."""
    try:
        _require(settings, parent, place)
    except (DataError, ConfigError) as error:
        return str(error)
    except ModuleNotFoundError as error:
        return f"{error.name} must be installed to look at that. Install hpm-ablation[train]."
    return missing() if isinstance(settings, Detect) else None


def unshared(settings: Any, workers: int) -> str | None:
    """Why a stage cannot be shared by so many workers; None where it can."""
    match settings:
        case config.Pretrain(optim=config.Optim(batch_size=size, accumulate=parts)) if (
            size % (workers * parts) != 0
        ):
            return (
                f"optim.batch_size must be divisible by {workers} workers times "
                f"optim.accumulate={parts}, got {size}. Change one of the three."
            )
        case Linear(augment=True, batch_size=size) if size % workers != 0:
            return (
                f"batch_size must be divisible by {workers} workers, got {size}. "
                "Change one of the two."
            )
        case (
            Segment(optim=Recipe(batch_size=size, accumulate=parts))
            | Detect(optim=Recipe(batch_size=size, accumulate=parts))
        ) if size % (workers * parts) != 0:
            return (
                f"optim.batch_size must be divisible by {workers} workers times "
                f"optim.accumulate={parts}, got {size}. Change one of the three."
            )
        case Finetune(
            optim=Recipe(batch_size=size, accumulate=parts), augment=Augment(mixes=mixes)
        ) if size % (workers * parts * (1 + mixes)) != 0:
            pairs = ", and the quotient even, for images are mixed in pairs" if mixes else ""
            return (
                f"optim.batch_size must be divisible by {workers} workers times "
                f"optim.accumulate={parts}{pairs}; got {size}. Change one of the three."
            )
    return None


def _require(settings: Any, parent: Any, place: Place) -> None:
    name = (settings.data or parent.data).name
    _require_encoder(settings, parent)
    match settings:
        case Random() | Pixels():
            pass
        case Checkpoint():
            _try_checkpoint(settings, place)
        case Segment(data=data):
            settings.require(parent.encoder)
            said = Classes() if data is None else data.said
            steps_per_epoch(require_maps(name, place.data, said), settings.optim.batch_size)
        case Detect():
            settings.require(parent.encoder)
            steps_per_epoch(require_objects(name, place.data), settings.optim.batch_size)
        case Finetune():
            settings.require(parent.encoder)
            steps_per_epoch(require_labels(name, place.data).train, settings.optim.batch_size)
        case Knn() | Linear():
            _require_images(settings, parent, require_labels(name, place.data))
        case config.Pretrain(target=target):
            steps_per_epoch(require_labels(name, place.data).train, settings.optim.batch_size)
            if target.kind in ("teacher", "tokens"):
                _try_target(settings, place)
        case other:
            raise AssertionError(other)


def _require_images(settings: Knn | Linear, parent: Any, images: Counts) -> None:
    """See that there are images enough, and not too many for what is kept of each."""
    if isinstance(settings, Knn):
        settings.require(images.train)
    else:
        steps_per_epoch(images.train, settings.batch_size)
    # With augmentation features of training images are made as they are needed.
    anew = isinstance(settings, Linear) and settings.augment
    pixels = isinstance(parent, Pixels)
    require_room(
        images.val if anew else max(images),
        3 * parent.data.image_size**2 if pixels else parent.encoder.width,
    )


def _require_encoder(settings: Any, parent: Any) -> None:
    if isinstance(settings, Detect | Finetune | Segment) and isinstance(parent, Pixels):
        raise DataError(
            "finetune, segment and detect need an encoder, but the pixels reference has none. "
            "Leave pixels out of references, or this evaluation out of the study."
        )
    trails = isinstance(parent, config.Pretrain) and parent.needs_teacher
    if getattr(settings, "role", "student") == "teacher" and parent is not None and not trails:
        raise DataError(
            "role must be student where pretraining has no teacher (references, plain MAE, or "
            "hard_share 0 without the target ema), got teacher."
        )


def _try_target(settings: config.Pretrain, place: Place) -> None:
    """Build the target once in a process, on the CPU; where it is kept on disk, ask for room."""
    import torch

    from hpm.precomputed import features_folder
    from hpm.targets import build_target

    target, data = settings.target, settings.data.name
    files = [find_weights(target.teacher, place)] if target.teacher is not None else []
    files += [find_file(target.codebook, place)] if target.codebook is not None else []
    what = (
        target,
        (settings.side, settings.encoder.patch_size, settings.precision),
        tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files),
        (data, place.data.get(data), features_folder()) if target.precompute else (),
    )
    if what not in _TRIED:
        build_target(settings, place, torch.device("cpu"))
        _TRIED.add(what)


def _try_checkpoint(settings: Checkpoint, place: Place) -> None:
    from hpm.evaluate.references import read_checkpoint

    read_checkpoint(settings, place)
