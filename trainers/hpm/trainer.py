"""What the entry point hands over: the method's stages, presets and metrics.

A platform looks at `TRAINER` structurally. Importing this module loads no torch, so that a study
is read and planned in a moment; a stage loads its own module when it runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, final

from hpm import config
from hpm.data.errors import DataError
from hpm.data.fingerprint import file_digest, fingerprint
from hpm.data.maps import Classes
from hpm.data.serving import require_labels, require_maps
from hpm.evaluate.config import Checkpoint, Knn, Linear, Pixels, Random
from hpm.evaluate.finetune_config import Augment, Finetune
from hpm.evaluate.recipe import Recipe
from hpm.evaluate.segment.config import Segment
from hpm.hub import find_file, find_weights
from hpm.presets import PRESETS
from hpm.progress import Place, StageRun
from hpm.rules import ConfigError

__all__ = ["TRAINER", "HpmStage", "HpmTrainer"]

Kind: TypeAlias = Literal["train", "reference", "evaluate"]
Direction: TypeAlias = Literal["higher", "lower"]


class _Run(Protocol):
    def __call__(
        self,
        settings: Any,
        /,
        *,
        seed: int,
        place: Place,
        inputs: Path | None,
        resume: Path | None,
        should_stop: Callable[[], bool],
    ) -> StageRun: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HpmStage:
    """One kind of work; `load` imports the code that does it."""

    kind: Kind
    config_type: type[Any]
    load: Callable[[], _Run]

    def run(
        self,
        settings: Any,
        /,
        *,
        seed: int,
        place: Place,
        inputs: Path | None,
        resume: Path | None,
        should_stop: Callable[[], bool],
    ) -> StageRun:
        """Do the work: see the `run` of the stage's module."""
        return self.load()(
            settings,
            seed=seed,
            place=place,
            inputs=inputs,
            resume=resume,
            should_stop=should_stop,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HpmTrainer:
    """Hard Patches Mining as a method that can be ablated."""

    name: str = "hpm"
    result_version: int = 1

    def stages(self) -> Mapping[str, HpmStage]:
        """Stages by name."""
        return _STAGES

    def presets(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Named configurations: preset to stage to what differs from the defaults."""
        return PRESETS

    def metrics(self) -> Mapping[str, Direction]:
        """Metric names that tables may use, each with its better direction."""
        return _METRICS

    def reads(self, settings: Any, /) -> Mapping[str, str]:
        """The data set, weights and codebook that a stage names itself."""
        names: dict[str, str | None] = {}
        if settings.data is not None:
            names["data.name"] = settings.data.name
        match settings:
            case config.Pretrain(target=target):
                names |= {"target.teacher": target.teacher, "target.codebook": target.codebook}
            case Checkpoint(weights=weights):
                names["weights"] = weights
        return {path: name for path, name in names.items() if name is not None}

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        """Digest of a data set, or of a file of weights.

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

    def fits(self, settings: Any, parent: Any, place: Place, /) -> str | None:
        """Why a stage cannot run on what a stage of `parent` exports; None where it can."""
        try:
            _try(settings, parent, place)
        except (DataError, ConfigError) as error:
            return str(error)
        return None

    def check(self, settings: Any, workers: int, /) -> str | None:
        """Why a configuration cannot run on so many workers; None where it can."""
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
            case Segment(optim=Recipe(batch_size=size, accumulate=parts)) if (
                size % (workers * parts) != 0
            ):
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


def _try(settings: Any, parent: Any, place: Place) -> None:
    """See that a stage finds what it needs in its data set, its weights and its parent."""
    name = (settings.data or parent.data).name
    _require_encoder(settings, parent)
    match settings:
        case Segment(data=data):
            settings.require(parent.encoder)
            require_maps(name, place.data, Classes() if data is None else data.said)
            return
        case config.Pretrain(target=config.Target(kind="teacher" | "tokens")):
            _try_target(settings, place)
        case Checkpoint():
            _try_checkpoint(settings, place)
    if not isinstance(settings, Checkpoint | Random | Pixels):
        require_labels(name, place.data)


def _require_encoder(settings: Any, parent: Any) -> None:
    if isinstance(settings, Finetune | Segment) and isinstance(parent, Pixels):
        raise DataError(
            "An evaluation that trains an encoder needs one, but the pixels reference has none. "
            "Leave pixels out of references, or this evaluation out of the study."
        )
    trails = isinstance(parent, config.Pretrain) and parent.needs_teacher
    if getattr(settings, "role", "student") == "teacher" and parent is not None and not trails:
        raise DataError(
            "role must be student where pretraining has no teacher (references, plain MAE, or "
            "hard_share 0 without the target ema), got teacher."
        )


# The one place where imports belong into functions: a plan needs these stages, but no torch.
def _try_target(settings: config.Pretrain, place: Place) -> None:
    from hpm.targets import build_target

    build_target(replace(settings, target=replace(settings.target, precompute=False)), place)


def _try_checkpoint(settings: Checkpoint, place: Place) -> None:
    from hpm.evaluate.references import read_checkpoint

    read_checkpoint(settings, place)


def _load_pretrain() -> _Run:
    from hpm.pretrain import run

    return run


def _load_random() -> _Run:
    from hpm.evaluate.references import run_random

    return run_random


def _load_checkpoint() -> _Run:
    from hpm.evaluate.references import run_checkpoint

    return run_checkpoint


def _load_pixels() -> _Run:
    from hpm.evaluate.references import run_pixels

    return run_pixels


def _load_knn() -> _Run:
    from hpm.evaluate.knn import run

    return run


def _load_linear() -> _Run:
    from hpm.evaluate.linear import run

    return run


def _load_segment() -> _Run:
    from hpm.evaluate.segment.run import run

    return run


def _load_finetune() -> _Run:
    from hpm.evaluate.finetune import run

    return run


_STAGES: Final = {
    "pretrain": HpmStage(kind="train", config_type=config.Pretrain, load=_load_pretrain),
    "random": HpmStage(kind="reference", config_type=Random, load=_load_random),
    "checkpoint": HpmStage(kind="reference", config_type=Checkpoint, load=_load_checkpoint),
    "pixels": HpmStage(kind="reference", config_type=Pixels, load=_load_pixels),
    "knn": HpmStage(kind="evaluate", config_type=Knn, load=_load_knn),
    "linear": HpmStage(kind="evaluate", config_type=Linear, load=_load_linear),
    "segment": HpmStage(kind="evaluate", config_type=Segment, load=_load_segment),
    "finetune": HpmStage(kind="evaluate", config_type=Finetune, load=_load_finetune),
}

_METRICS: Final[Mapping[str, Direction]] = {
    "pretrain/loss": "lower",
    "pretrain/reconstruction_loss": "lower",
    "pretrain/predictor_loss": "lower",
    "pretrain/rank_correlation": "higher",
    "pretrain/predicted_auc": "higher",
    "pretrain/true_auc": "higher",
    "knn/top1": "higher",
    "knn/top5": "higher",
    "linear/top1": "higher",
    "linear/top5": "higher",
    "segment/miou": "higher",
    "segment/pixel_accuracy": "higher",
    "finetune/top1": "higher",
    "finetune/top5": "higher",
}

TRAINER: Final = HpmTrainer()
