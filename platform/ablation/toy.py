"""A trainer that trains nothing, for tests and demonstrations of the platform.

Its numbers depend on configuration, seed and step, as a real method's do, and its state survives
saving and resuming to the last bit. It can fail, die and stop on demand. Its scratch folder is
`place.data["scratch"]`, so what it notes there is no part of any identity; accidents that happen
once leave a marker in it, and without it they do not happen.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from ablation.protocol import Direction, Kind, Place, Stage

__all__ = [
    "TRAINER",
    "Toy",
    "ToyMask",
    "ToyNoise",
    "ToyProgress",
    "ToyResult",
    "ToyScore",
    "ToyTrainer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyMask:
    """A nested setting: how strongly the draws pull, and in which direction."""

    ratio: float = 0.5
    prefer: Literal["hard", "easy"] = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """The training: `steps` steps of `rate`, metrics at every `log_every`th, and what goes wrong.

    At the given steps (0: never) it fails unless the scratch folder holds `mended` (`fail_at`) or
    only once (`fail_once_at`), runs out of memory, the process dies once (`die_at`) or always
    (`crash_at`), or `stop` is written to the scratch folder once.
    """

    steps: int = 8
    rate: float = 0.1
    batch: int = 8
    mask: ToyMask = field(default_factory=ToyMask)
    data: str = ""
    log_every: int = 1
    sleep_s: float = 0.0
    fail_at: int = 0
    fail_once_at: int = 0
    memory_at: int = 0
    die_at: int = 0
    crash_at: int = 0
    stop_at: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyNoise:
    """The yardstick: a weight drawn at random."""

    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyScore:
    """An evaluation in `steps` steps that fails at step `fail_at` (0: never)."""

    steps: int = 2
    fail_at: int = 0


@dataclass(frozen=True, slots=True)
class ToyProgress:
    """One step done."""

    step: int
    total: int
    metrics: Mapping[str, float]
    save: Callable[[Path], None]
    trace: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True, slots=True)
class ToyResult:
    """The end of a stage."""

    metrics: Mapping[str, float]
    export: Callable[[Path], None]


Steps: TypeAlias = Generator[ToyProgress, None, ToyResult | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyStage:
    """A stage of one configuration type and the generator function that does it."""

    kind: Kind
    config_type: type[Any]
    steps: Callable[..., Steps]

    def run(
        self,
        config: Any,
        /,
        *,
        seed: int,
        place: Place,
        inputs: Path | None,
        resume: Path | None,
        should_stop: Callable[[], bool],
    ) -> Steps:
        """Do the stage."""
        return self.steps(
            config,
            seed=seed,
            scratch=place.data.get("scratch"),
            inputs=inputs,
            resume=resume,
            should_stop=should_stop,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyTrainer:
    """`train`, the yardstick `noise`, and the evaluations `score` and `probe`."""

    name: str = "toy"
    result_version: int = 1

    def stages(self) -> Mapping[str, Stage]:
        """The four stages."""
        return {
            "train": ToyStage(kind="train", config_type=Toy, steps=_train),
            "noise": ToyStage(kind="reference", config_type=ToyNoise, steps=_noise),
            "score": ToyStage(kind="evaluate", config_type=ToyScore, steps=_score),
            "probe": ToyStage(kind="evaluate", config_type=ToyScore, steps=_score),
        }

    def presets(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """The defaults, and a shorter training."""
        return {"toy": {}, "quick": {"train": {"steps": 3}}}

    def metrics(self) -> Mapping[str, Direction]:
        """What tables may show."""
        return {"train/loss": "lower", "score/accuracy": "higher", "probe/accuracy": "higher"}

    def reads(self, config: Any, /) -> Mapping[str, str]:
        """The file that a training names as its data."""
        return {"data": config.data} if isinstance(config, Toy) and config.data else {}

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        """SHA-256 of a file; raises LookupError where the place does not say where it is."""
        if name not in place.data:
            raise LookupError(f"The place must say where {name!r} lies, it does not.")
        return hashlib.sha256(place.data[name].read_bytes()).hexdigest()

    def fits(self, config: Any, parent: Any, place: Place, /) -> None:
        """Every evaluation can use every weight."""

    def check(self, config: Any, workers: int, /) -> str | None:
        """A training's batch must be divisible by the number of workers."""
        if isinstance(config, Toy) and config.batch % workers:
            return f"batch must be divisible by {workers} workers, got {config.batch}."
        return None

    def devices(self) -> int:
        """It computes on no GPU."""
        return 0


def _train(
    config: Toy,
    *,
    seed: int,
    scratch: Path | None,
    inputs: None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> Steps:
    step, weight = _load(resume)
    pull = config.mask.ratio * (1 if config.mask.prefer == "hard" else -1)
    while step < config.steps:
        if should_stop():
            return None
        step += 1
        time.sleep(config.sleep_s)
        _log_work(scratch, "train", step, f"{config.rate}/{seed}")
        _accidents(config, step, scratch)
        weight -= config.rate * (weight - pull * _draw("train", seed, step))
        metrics = {"loss": weight * weight, "weight": weight}
        shown = metrics if step % config.log_every == 0 else {}
        trace = partial(_trace, step, weight)
        yield ToyProgress(step, config.steps, shown, _saver(step, weight), trace)
    return ToyResult({"loss": weight * weight}, _saver(step, weight))


def _noise(config: ToyNoise, *, seed: int, resume: Path | None, **_: object) -> Steps:
    weight = config.scale * _draw("noise", seed, 0)
    if resume is None:
        yield ToyProgress(1, 1, {}, _saver(1, weight), partial(_trace, 1, weight))
    return ToyResult({}, _saver(1, weight))


def _score(
    config: ToyScore,
    *,
    seed: int,
    scratch: Path | None,
    inputs: Path,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> Steps:
    _, weight = _load(inputs)
    step, total = _load(resume)
    while step < config.steps:
        if should_stop():
            return None
        step += 1
        _log_work(scratch, "score", step, f"/{seed}")
        if step == config.fail_at:
            raise RuntimeError(f"the toy was asked to fail at step {step}")
        total += 1 / (1 + abs(weight - _draw("score", seed, step)))
        trace = partial(_trace, step, total)
        yield ToyProgress(step, config.steps, {}, _saver(step, total), trace)
    return ToyResult({"accuracy": total / config.steps}, _saver(step, total))


def _accidents(config: Toy, step: int, scratch: Path | None) -> None:
    if step == config.fail_at and not (scratch and (scratch / "mended").exists()):
        raise RuntimeError(f"the toy was asked to fail at step {step}")
    if scratch and step == config.fail_once_at and _first(scratch / f"failed-{step}"):
        raise RuntimeError(f"the toy was asked to fail once, at step {step}")
    if step == config.memory_at:
        raise MemoryError(f"the toy was asked to run out of memory at step {step}")
    if step == config.crash_at:
        os._exit(17)
    if scratch and step == config.die_at and _first(scratch / f"died-{step}"):
        os._exit(17)
    if scratch and step == config.stop_at and _first(scratch / f"stopped-{step}"):
        (scratch / "stop").touch()


def _first(marker: Path) -> bool:
    """Whether a marker was absent until now."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _log_work(scratch: Path | None, stage: str, step: int, which: str) -> None:
    """Note a step: stage, step, whose (rate/seed), by which process, when (seconds), its rank."""
    if scratch:
        rank = os.environ.get("RANK", "0")  # as torch's launchers, Ray Train too, tell a worker
        with (scratch / "work.txt").open("a") as file:
            file.write(f"{stage} {step} {which} {os.getpid()} {time.time():.3f} {rank}\n")


def _draw(purpose: str, seed: int, step: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    key = hashlib.sha256(f"{purpose}/{seed}/{step}".encode()).digest()
    return int.from_bytes(key[:6], "big") / 2**48


def _load(folder: Path | None) -> tuple[int, float]:
    if folder is None:
        return 0, 0.0
    state = json.loads((folder / "state" / "weight.json").read_text())
    return state["step"], state["weight"]


def _saver(step: int, weight: float) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "weight.json").write_text(json.dumps({"step": step, "weight": weight}))

    return save


def _trace(step: int, weight: float) -> dict[str, str]:
    values = {"step": str(step), "weight": weight.hex()}
    return {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in values.items()}


TRAINER: Final = ToyTrainer()
