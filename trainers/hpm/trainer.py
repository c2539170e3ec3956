"""What the entry point hands over: the method's stages, presets and metrics.

A platform looks at `TRAINER` structurally. Importing this module loads no torch, so that a study
is read and planned in a moment; a stage loads its own module when it runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, final

from hpm import config
from hpm.data.fingerprint import fingerprint
from hpm.evaluate.config import Knn, Linear, Pixels, Random
from hpm.evaluate.detect.config import Detect, MissingPackageError, missing
from hpm.evaluate.recipe import Recipe
from hpm.presets import PRESETS
from hpm.progress import Place, StageRun

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

    def fingerprint(self, settings: Any, data: Mapping[str, Path], /) -> str | None:
        """Digest of the data set that a stage reads; None where it takes its parent's.

        Raises:
            DataError: the data set is unknown, absent or unreadable.
        """
        return None if settings.data is None else fingerprint(settings.data.name, data)

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
            case Detect(optim=Recipe(batch_size=size, accumulate=parts)) if (
                size % (workers * parts) != 0
            ):
                return (
                    f"optim.batch_size must be divisible by {workers} workers times "
                    f"optim.accumulate={parts}, got {size}. Change one of the three."
                )
            case Detect():
                return missing()
        return None


# The one place where imports belong into functions: a plan needs these stages, but no torch.
def _load_pretrain() -> _Run:
    from hpm.pretrain import run

    return run


def _load_random() -> _Run:
    from hpm.evaluate.references import run_random

    return run_random


def _load_pixels() -> _Run:
    from hpm.evaluate.references import run_pixels

    return run_pixels


def _load_knn() -> _Run:
    from hpm.evaluate.knn import run

    return run


def _load_linear() -> _Run:
    from hpm.evaluate.linear import run

    return run


def _load_detect() -> _Run:
    if problem := missing():
        raise MissingPackageError(problem)
    from hpm.evaluate.detect.stage import run

    return run


_STAGES: Final = {
    "pretrain": HpmStage(kind="train", config_type=config.Pretrain, load=_load_pretrain),
    "random": HpmStage(kind="reference", config_type=Random, load=_load_random),
    "pixels": HpmStage(kind="reference", config_type=Pixels, load=_load_pixels),
    "knn": HpmStage(kind="evaluate", config_type=Knn, load=_load_knn),
    "linear": HpmStage(kind="evaluate", config_type=Linear, load=_load_linear),
    "detect": HpmStage(kind="evaluate", config_type=Detect, load=_load_detect),
}

_METRICS: Final[Mapping[str, Direction]] = {
    "pretrain/loss": "lower",
    "pretrain/reconstruction_loss": "lower",
    "pretrain/predictor_loss": "lower",
    "knn/top1": "higher",
    "knn/top5": "higher",
    "linear/top1": "higher",
    "linear/top5": "higher",
    "detect/box_ap": "higher",
    "detect/mask_ap": "higher",
    "detect/box_ap50": "higher",
}

TRAINER: Final = HpmTrainer()
