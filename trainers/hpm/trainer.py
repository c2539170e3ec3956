"""What the entry point hands over: the method's stages, presets and metrics.

A platform looks at `TRAINER` structurally. Importing this module loads no torch, so that a study
is read and planned in a moment; a stage loads its own module when it runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, final

from hpm import config
from hpm.evaluate.config import Checkpoint, Knn, Linear, Pixels, Random
from hpm.evaluate.detect.config import Detect, MissingPackageError, missing
from hpm.evaluate.finetune_config import Finetune
from hpm.evaluate.segment.config import Segment
from hpm.needs import digest_of, misfit, reads, unshared
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
    result_version: int = 3

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
        """The data set, weights and codebook that a stage names itself, by dotted path."""
        return reads(settings)

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        """Digest of a data set, or of a file of weights.

        Raises:
            DataError: it is unknown, absent or unreadable.
        """
        return digest_of(path, name, place)

    def fits(self, settings: Any, parent: Any, place: Place, /) -> str | None:
        """Why a stage cannot run on what a stage of `parent` exports; None where it can."""
        return misfit(settings, parent, place)

    def check(self, settings: Any, workers: int, /) -> str | None:
        """Why a configuration cannot run on so many workers; None where it can."""
        return unshared(settings, workers)

    def devices(self) -> int:
        """How many GPUs of this machine it can compute on."""
        import torch

        return torch.cuda.device_count()


# The one place where imports belong into functions: a plan needs these stages, but no torch.
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


def _load_detect() -> _Run:
    if problem := missing():
        raise MissingPackageError(problem)
    from hpm.evaluate.detect.stage import run

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
    "detect": HpmStage(kind="evaluate", config_type=Detect, load=_load_detect),
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
    "detect/box_ap": "higher",
    "detect/mask_ap": "higher",
    "detect/box_ap50": "higher",
}

TRAINER: Final = HpmTrainer()
