"""What checkpoints cost: the same pretraining saved at the default pace and not at all, in turn.

    python benchmarks/checkpoint_cost.py [--seconds 300] [--pairs 3] [--threads N] [--storage DIR]

HPM with a ViT-Ti at 64 pixels (a step of some 100 ms on two cores, a checkpoint of 98 MB) goes
through `execute` in this process, as in a worker, in legs of equally many steps. The ratio of wall
time per step drowns in the noise of a shared machine; that of CPU time does so less. What does not
is measured inside the legs that save: the time for which training waited at steps that were saved,
and the CPU time of the threads that commit. Their sum bounds the cost from above: training has more
than one core, and where it computes on a GPU the threads cost it nothing.
"""

import argparse
import json
import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ablation.cells import PlannedStage
from ablation.events import Event
from ablation.execute import execute
from ablation.pace import Pace
from ablation.protocol import Place, Progress, Stage
from ablation.terms import Terms
from ablation.testing import new_ledger
from hpm.config import Data, Decoder, Encoder, Mask, Optim, Pretrain
from hpm.progress import Progress as HpmProgress
from hpm.trainer import TRAINER

_DEFAULT, _NONE = Pace(), Pace(least_s=1e9, most_s=1e9)
_WARM_UP_STEPS = 5
_CONFIG = Pretrain(
    data=Data(name="fashion-scenes", image_size=64),
    encoder=Encoder(patch_size=8, width=192, depth=12, heads=3),
    decoder=Decoder(width=128, depth=2, heads=4),
    mask=Mask(schedule_by="step"),
    optim=Optim(batch_size=8),
    epochs=1000,
    precision="float32",
)


@dataclass(slots=True, kw_only=True)
class Leg:
    """A stage of the trainer for so many steps after a few to warm up, with a clock around it."""

    steps: int
    inner: Stage
    fastest_s: float = math.inf
    """The fastest step."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)
    """At each step that was saved: until training went on."""
    written_s: list[float] = field(default_factory=list)
    """Of that, the trainer's own writing into a folder."""
    kept_s: float = 0.0
    """At all other steps, in sum."""
    committing_s: list[float] = field(default_factory=list)
    """CPU time of the threads that committed."""
    size: int = 0
    """Bytes of the last checkpoint."""
    over: bool = False
    _write_s: float = 0.0
    """At this step; 0 where it is not saved."""

    @property
    def kind(self) -> Any:
        return self.inner.kind

    @property
    def config_type(self) -> type[Any]:
        return self.inner.config_type

    def run(self, config: Any, /, **place: Any) -> Generator[Progress, None, None]:
        """The steps, each with the time that it was held up."""
        went_on = time.perf_counter()
        for progress in self.inner.run(config, **place):
            assert isinstance(progress, HpmProgress)
            came = time.perf_counter()
            self.fastest_s = min(self.fastest_s, came - went_on)
            if progress.step == _WARM_UP_STEPS + self.steps:
                self.wall_s += came
                self.cpu_s += time.process_time()
                self.over = True
            self._write_s = 0.0
            yield progress._replace(save=self._timed(progress.save))
            went_on = time.perf_counter()
            if progress.step == _WARM_UP_STEPS:
                self.wall_s, self.cpu_s = -went_on, -time.process_time()
            elif progress.step > _WARM_UP_STEPS and not self.over:
                self._note(went_on - came)

    def observe(self, event: Event) -> None:
        """Called in the thread that the event is of: a commit's is its own."""
        if event.kind == "committed" and event.step < _WARM_UP_STEPS + self.steps:
            assert threading.current_thread() is not threading.main_thread()
            self.committing_s.append(time.thread_time())

    def report(self) -> dict[str, Any]:
        saved = bool(self.waited_s)
        return {
            "saved": saved,
            "seconds per step": round(self.wall_s / self.steps, 4),
            "CPU seconds per step": round(self.cpu_s / self.steps, 4),
            "other waiting, % of the time": _percent(self.kept_s, self.wall_s),
        } | (self._saving() if saved else {})

    def _saving(self) -> dict[str, Any]:
        return {
            "saves": len(self.waited_s),
            "MB": round(self.size / 1e6, 1),
            "longest wait, s": round(max(self.waited_s), 3),
            "waited, % of the time": _percent(sum(self.waited_s), self.wall_s),
            "of it in the trainer's save, %": _percent(sum(self.written_s), self.wall_s),
            "CPU of commits, % of the time": _percent(sum(self.committing_s), self.wall_s),
        }

    def _note(self, waited_s: float) -> None:
        if self._write_s:
            self.waited_s.append(waited_s)
            self.written_s.append(self._write_s)
        else:
            self.kept_s += waited_s

    def _timed(self, save: Callable[[Path], None]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            began = time.perf_counter()
            save(folder)
            self._write_s = time.perf_counter() - began
            self.size = sum(file.stat().st_size for file in folder.iterdir())

        return write


@dataclass(frozen=True, slots=True)
class Clocked:
    """As much of a trainer as `execute` asks for."""

    leg: Leg
    name: str = TRAINER.name
    result_version: int = TRAINER.result_version

    def stages(self) -> Mapping[str, Stage]:
        return {"pretrain": self.leg}

    def presets(self) -> Mapping[str, Any]:
        return {}

    def metrics(self) -> Mapping[str, Any]:
        return {}

    def reads(self, config: Any, /) -> Mapping[str, str]:
        return {}

    def fingerprint(self, name: str, place: Place, /) -> str:
        raise LookupError(name)

    def fits(self, config: Any, parent: Any, place: Place, /) -> None:
        return None

    def check(self, config: Any, workers: int, /) -> None:
        return None


def run(steps: int, pace: Pace, place: Place, storage: Path | None) -> Leg:
    """One leg, on a ledger of its own."""
    leg = Leg(steps=steps, inner=TRAINER.stages()["pretrain"])
    stage = PlannedStage(
        name="pretrain",
        kind="train",
        digest=secrets.token_hex(32),
        config=_CONFIG,
        seed=0,
        data=None,
        parent=None,
    )
    with TemporaryDirectory(prefix="checkpoint-cost-", dir=storage) as folder:
        result = execute(
            stage,
            trainer=Clocked(leg),
            ledger=new_ledger(folder),
            place=place,
            observe=leg.observe,
            should_stop=lambda: leg.over,
            terms=Terms(pace=pace),
        )
    assert result == "stopped", result
    return leg


def compare(with_saves: Sequence[Leg], without: Sequence[Leg]) -> dict[str, Any]:
    """What the legs come to: medians over them, or over their pairs."""
    pairs = list(zip(with_saves, without, strict=True))
    wait_s = median(wait_s for leg in with_saves for wait_s in leg.waited_s)
    commit_s = median(cpu_s for leg in with_saves for cpu_s in leg.committing_s)
    interval_s = _DEFAULT.interval_s(wait_s)
    return {
        "ratio of seconds per step": round(median(a.wall_s / b.wall_s for a, b in pairs), 4),
        "ratio of CPU seconds per step": round(median(a.cpu_s / b.cpu_s for a, b in pairs), 4),
        "waited in saves, % of the time": _median_percent(
            (sum(leg.waited_s), leg.wall_s) for leg in with_saves
        ),
        "CPU of commits, % of the time": _median_percent(
            (sum(leg.committing_s), leg.wall_s) for leg in with_saves
        ),
        "in a long run": {
            "wait of a save, s": round(wait_s, 3),
            "CPU of a commit, s": round(commit_s, 3),
            "seconds between saves": round(interval_s, 1),
            "waited, % of the time": _percent(wait_s, wait_s + interval_s),
            "waited, and CPU of commits, %": _percent(wait_s + commit_s, wait_s + interval_s),
        },
    }


def _median_percent(shares: Iterable[tuple[float, float]]) -> float:
    return round(median(100 * part / whole for part, whole in shares), 3)


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 3)


def main() -> None:
    """Print legs and comparison, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of a leg, at least")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="all CPUs by default")
    parser.add_argument("--storage", type=Path, help="where the ledgers lie (a temporary folder)")
    given = parser.parse_args()
    if given.seconds < 10:
        parser.error(
            f"--seconds must be at least 10, as the first save comes after 5 s, "
            f"got {given.seconds:g}."
        )
    here = {"place": Place(threads=given.threads), "storage": given.storage}
    # Noise makes steps slower, never faster, and a short leg has no save.
    steps = round(given.seconds / run(20, _NONE, **here).fastest_s)
    legs: dict[Pace, list[Leg]] = {_DEFAULT: [], _NONE: []}
    for _ in range(given.pairs):
        for pace, done in legs.items():
            done.append(run(steps, pace, **here))
    found = {
        "steps": steps,
        "threads": given.threads,
        "legs": [leg.report() for pair in zip(*legs.values(), strict=True) for leg in pair],
        "medians": compare(legs[_DEFAULT], legs[_NONE]),
    }
    machine = {"cpus": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({**found, **machine, "python": platform.python_version()}, indent=1))


if __name__ == "__main__":
    main()
