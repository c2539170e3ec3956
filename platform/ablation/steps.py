"""The steps of a trainer's stage, and whatever goes wrong in them as one kind of error."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from ablation.cells import Finished
from ablation.protocol import Progress, Result

__all__ = ["Steps", "TrainerError", "Watched", "begun", "blamed", "called", "follow", "numbers"]

Steps: TypeAlias = Generator[Progress, None, Result | None]
"""A trainer's stage at work."""


class TrainerError(Exception):
    """The trainer raised, or broke the protocol, as `__cause__` says."""


class Watched:
    """Iterates over steps and keeps their result."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.result: Result | None = None

    def __iter__(self) -> Iterator[Progress]:
        self.result = yield from self.steps


def begun(begin: Callable[[], Steps]) -> Steps:
    """The steps of a stage that begins with the first of them: only then may it raise."""
    return (yield from begin())


def follow(steps: Steps) -> Finished:
    """Do the steps and record nothing: what workers do beside their lead."""
    watched = Watched(steps)
    with closing(steps):
        for _ in watched:
            pass
    if watched.result is None:
        raise ValueError("A stage must return its result, got None although nothing asked it to.")
    return Finished(dict(watched.result.metrics))


def blamed(steps: Iterable[Progress]) -> Iterator[Progress]:
    """The same steps; what the trainer raises, and nothing else, becomes TrainerError."""
    try:
        yield from steps
    except Exception as error:
        raise TrainerError from error


def called(write: Callable[[Path], None], folder: Path) -> None:
    """Have the trainer write into a folder; what it raises becomes TrainerError."""
    try:
        write(folder)
    except Exception as error:
        raise TrainerError from error


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as the trainer gave them, each a number.

    Raises TrainerError where one is none.
    """
    try:
        return {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError):
        raise TrainerError from ValueError(f"Metrics must be numbers, got {metrics}.")
