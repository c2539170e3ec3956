"""A trainer that watches another: it writes down what every step came to, and kills on schedule.

Its identity is that of the other, so an executor runs it in the other's place. Every worker of a
group writes its own traces; who is killed is decided by rank, which launchers put into RANK.
"""

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablation.protocol import Direction, Kind, Place, Progress, Result, Stage, Trainer
from ablation.storage import Storage

__all__ = ["Kill", "Trace", "Witness"]

_READERS = 16  # requests to an object store at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """The end by SIGKILL of one worker, once, after it has handed on a step of a stage.

    Shares in [0, 1): `moment` of that step's duration, `worker` of the number of workers.
    """

    stage: str
    step: int
    moment: float = 0.0
    worker: float = 0.0

    @property
    def marker(self) -> str:
        """What lies in the storage from then on."""
        return f"kills/{self.stage}-{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a step came to, as one worker saw it: the trainer's digests by name."""

    step: int
    total: int
    rank: int
    took_s: float
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """`trainer`, watched: traces and marks of kills go to `storage`.

    A training ends after `steps` steps (None: all); it then has the metrics of the last of them,
    which is not handed on, and exports nothing.
    """

    trainer: Trainer
    storage: Storage
    kills: tuple[Kill, ...] = ()
    steps: int | None = None

    @property
    def name(self) -> str:
        """The trainer's."""
        return self.trainer.name

    @property
    def result_version(self) -> int:
        """The trainer's."""
        return self.trainer.result_version

    def stages(self) -> Mapping[str, Stage]:
        """The trainer's, watched."""
        return {name: _Watched(name, stage, self) for name, stage in self.trainer.stages().items()}

    def presets(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """The trainer's."""
        return self.trainer.presets()

    def metrics(self) -> Mapping[str, Direction]:
        """The trainer's."""
        return self.trainer.metrics()

    def reads(self, config: Any, /) -> Mapping[str, str]:
        """The trainer's."""
        return self.trainer.reads(config)

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        """The trainer's."""
        return self.trainer.fingerprint(path, name, place)

    def fits(self, config: Any, parent: Any, place: Place, /) -> str | None:
        """The trainer's."""
        return self.trainer.fits(config, parent, place)

    def check(self, config: Any, workers: int, /) -> str | None:
        """The trainer's."""
        return self.trainer.check(config, workers)

    def devices(self) -> int:
        """The trainer's."""
        return self.trainer.devices()

    def traces(self, stage: str) -> tuple[Trace, ...]:
        """All that was written down of a stage, by step."""
        folder = f"traces/{stage}"
        names = [name for name in self.storage.names(folder) if name.endswith(".json")]
        with ThreadPoolExecutor(_READERS) as pool:
            contents = pool.map(lambda name: self.storage.read(f"{folder}/{name}"), names)
            traces = [Trace(**json.loads(content)) for content in contents if content]
        return tuple(sorted(traces, key=lambda trace: (trace.step, trace.rank)))

    def killed(self) -> int:
        """How many of the kills have been."""
        return sum(self.storage.read(kill.marker) is not None for kill in self.kills)


@dataclass(frozen=True, slots=True)
class _Cut:
    """The end of a training that was to do no more steps."""

    metrics: Mapping[str, float]

    @property
    def export(self) -> Callable[[Path], None]:
        return lambda folder: None


@dataclass(frozen=True, slots=True)
class _Watched:
    """One stage under a witness."""

    name: str
    stage: Stage
    witness: Witness

    @property
    def kind(self) -> Kind:
        return self.stage.kind

    @property
    def config_type(self) -> type[Any]:
        return self.stage.config_type

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
    ) -> Generator[Progress, None, Result | None]:
        steps = self.stage.run(
            config, seed=seed, place=place, inputs=inputs, resume=resume, should_stop=should_stop
        )
        result: Result | None = None

        def watched() -> Iterator[Progress]:
            nonlocal result
            result = yield from steps

        last = self.witness.steps if self.kind == "train" else None
        leg, end, began = secrets.token_hex(4), None, time.monotonic()
        with closing(steps):
            for progress in watched():
                took_s = time.monotonic() - began
                _await(end)
                self._write(progress, took_s, leg)
                end = self._end_after(progress.step, took_s)
                if progress.step == last:  # not handed on: who resumed after it would go past it
                    result = _Cut(dict(progress.metrics))
                    break
                yield progress
                began = time.monotonic()
            _await(end)
        return result

    def _write(self, progress: Progress, took_s: float, leg: str) -> None:
        rank, _ = _worker()
        trace = Trace(
            step=progress.step,
            total=progress.total,
            rank=rank,
            took_s=took_s,
            digests=dict(progress.trace()),
        )
        path = f"traces/{self.name}/{progress.step}-{rank}-{leg}.json"
        self.witness.storage.write(path, json.dumps(asdict(trace)).encode(), durable=False)

    def _end_after(self, step: int, took_s: float) -> threading.Timer | None:
        """The end of this process, where it is to come after a step."""
        rank, workers = _worker()
        storage = self.witness.storage
        for kill in self.witness.kills:
            mine = (kill.stage, kill.step, int(kill.worker * workers)) == (self.name, step, rank)
            if mine and storage.read(kill.marker) is None:
                storage.write(kill.marker, b"killed")
                # A thread, so that it also comes while a step is computed or a commit is written.
                end = threading.Timer(kill.moment * took_s, _die)
                end.daemon = True
                end.start()
                return end
        return None


def _await(end: threading.Timer | None) -> None:
    """Hand on nothing more where this process is about to end."""
    if end is not None:
        end.join()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _worker() -> tuple[int, int]:
    """This process's rank, and the number of workers."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
