"""What a stage yields and returns, and what it is told about the place it runs in.

These types fit the platform's protocols by their structure alone, so neither side imports the
other.
"""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

__all__ = ["NonFiniteLossError", "Place", "Progress", "Result", "StageRun"]


class NonFiniteLossError(ArithmeticError):
    """The loss is not a number any more; the text names the step and the last finite loss."""

    retry: ClassVar[bool] = False
    """The same steps give the same loss."""


class Place(Protocol):
    """Where and how fast a stage runs; it never changes what is computed."""

    @property
    def data(self) -> Mapping[str, Path]:
        """Folders of data sets, and files of weights, by name."""
        ...

    @property
    def threads(self) -> int:
        """Compute threads of one worker."""
        ...

    @property
    def loaders(self) -> int:
        """Loader processes of one worker (0: none)."""
        ...

    @property
    def download(self) -> bool:
        """Whether weights that are not at hand may be fetched."""
        ...


class Progress(NamedTuple):
    """One step done: `step` of `total`, its metrics (empty at most steps), and how to save it.

    `trace()` gives digests of the state by name, computed when it is called. Both `save` and
    `trace` are of this step until the next one begins.
    """

    step: int
    total: int
    metrics: Mapping[str, float]
    save: Callable[[Path], None]
    trace: Callable[[], Mapping[str, str]]


class Result(NamedTuple):
    """How a stage ends: its final metrics, and what writes everything that outlives it."""

    metrics: Mapping[str, float]
    export: Callable[[Path], None]


StageRun: TypeAlias = Generator[Progress, None, Result | None]
"""A running stage; it returns None where it was asked to stop."""
