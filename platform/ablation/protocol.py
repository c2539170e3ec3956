"""The seam: what the platform asks of a trainer, and nothing about how a trainer is made.

A trainer is found by its entry point (group `ablation.trainers`). Its objects are looked at
structurally, so a trainer never imports the platform. Asking a trainer for its name, its
configuration types or its presets must stay cheap: no model code is loaded before `Stage.run`.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

__all__ = ["Direction", "Kind", "Place", "Progress", "Result", "Stage", "Trainer"]

Direction: TypeAlias = Literal["higher", "lower"]
"""Which way a metric is better."""

Kind: TypeAlias = Literal["train", "reference", "evaluate"]
"""What a stage is: the training itself, a yardstick that stands in for it, or a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how fast a stage runs: never part of an identity.

    `data` says where data sets and weights lie (name to a folder or file), `threads` is the number
    of compute threads of one worker, `loaders` the number of loader processes of one worker (0:
    none), `download` whether weights that are not at hand may be fetched.
    """

    data: Mapping[str, Path] = field(default_factory=dict)
    threads: int = 1
    loaders: int = 0
    download: bool = False


class Progress(Protocol):
    """One step done: `step` of `total`, its metrics (empty at most steps), and how to save it.

    `save(folder)` writes all that is needed to go on after this step into an empty folder. Every
    worker holds the same state, so one of them saves for all. `trace()` gives digests, by name, of
    the state after this step and of what the step was taken on, so that an interrupted run can be
    compared with one that was not; it costs nothing unless it is called. Both are called before
    the next step begins.
    """

    @property
    def step(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def save(self) -> Callable[[Path], None]: ...
    @property
    def trace(self) -> Callable[[], Mapping[str, str]]: ...


class Result(Protocol):
    """How a stage ends: its final metrics, and `export(folder)`, which writes what outlives it.

    What a train or reference stage exports is the `inputs` of the evaluations after it. What any
    stage exports below `figures/` is shown to people, and repeated by the mirror in MLflow; names
    there are of letters, digits, spaces and `_.-`, and begin with a letter or digit.
    """

    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def export(self) -> Callable[[Path], None]: ...


class Stage(Protocol):
    """One kind of work: its configuration type, a frozen dataclass, and what does it."""

    @property
    def kind(self) -> Kind: ...
    @property
    def config_type(self) -> type[Any]: ...
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
        """Yield after every step; return the result, or None where `should_stop` ended it.

        `resume` is a folder that an earlier `save` wrote, and the steps go on after it: none is
        left where that was the last one. `inputs` is what the parent stage exported.
        Exceptions end an attempt, and another may follow. A class of exceptions that no other try
        can change, such as those of bad input, says so by a class attribute: `retry = False`.
        One of something that may come back, such as a disk, says `away = True`: it is waited for.
        """
        ...


class Trainer(Protocol):
    """A method that can be ablated.

    `result_version` rises whenever the same study comes to mean other numbers.
    """

    @property
    def name(self) -> str: ...
    @property
    def result_version(self) -> int: ...
    def stages(self) -> Mapping[str, Stage]:
        """Stages by name; exactly one is of kind `train`."""
        ...

    def presets(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Named configurations: preset to stage to nested settings unlike the defaults."""
        ...

    def metrics(self) -> Mapping[str, Direction]:
        """Metric names that tables may use, as `stage/metric`, each with its better direction."""
        ...

    def reads(self, config: Any, /) -> Mapping[str, str]:
        """What a stage reads by itself: dotted path of a setting to the name that it holds.

        Names are those of data sets and weights. What a stage takes from its parent is not here.
        """
        ...

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        """Digest of the content of what the setting at `path` calls so, wherever it lies.

        Raises LookupError, ValueError or OSError, with a sentence for people, where it is unknown,
        absent or unreadable.
        """
        ...

    def fits(self, config: Any, parent: Any, place: Place, /) -> str | None:
        """Why a stage cannot run on what a `parent` exports; None where it can.

        Both are valid configurations, the parent's of a train or reference stage (None where
        `config` is of one), and all that they read is at hand. The sentence begins with what must
        hold.
        """
        ...

    def check(self, config: Any, workers: int, /) -> str | None:
        """Why a valid configuration cannot run on so many workers; None where it can."""
        ...

    def devices(self) -> int:
        """How many GPUs of this machine it can compute on."""
        ...
