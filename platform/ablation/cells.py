"""The values that everything else passes around: planned stages, cells, plans, and how each stands.

A cell is one row of a study with one seed; its first stage trains (or stands in for training) and
the others evaluate what the first one exported. A stage's digest is its identity: two cells that
need the same stage hold equal digests, and the ledger knows the stage by that digest alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ablation.protocol import Kind

__all__ = [
    "GO_ON",
    "Begun",
    "Cell",
    "Failed",
    "Finished",
    "Outcome",
    "PlannedStage",
    "Standing",
    "Stopped",
    "Waiting",
]


GO_ON = "it goes on when the study is run or submitted again"
"""What becomes of a cell that was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One unit of work: what determines its result, and the digest of just that."""

    name: str
    kind: Kind
    digest: str
    config: Any
    seed: int
    data: str | None
    """Fingerprints of what the stage itself reads, None where that is nothing."""
    parent: str | None
    """Digest of the stage whose export this one starts from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row with one seed; `reference` marks the yardsticks below the rows."""

    row: str
    seed: int
    stages: tuple[PlannedStage, ...]
    reference: bool = False

    @property
    def label(self) -> str:
        """The row's name, told apart from a reference of the same name."""
        return f"{self.row} (reference)" if self.reference else self.row

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.label}, seed {self.seed}"

    def __iter__(self) -> Iterator[PlannedStage]:
        return iter(self.stages)

    def finished(self, standings: "Mapping[str, Standing]") -> bool:
        """Whether all its stages ended well."""
        return all(isinstance(standings[stage.digest], Finished) for stage in self)

    def idle(self, standings: "Mapping[str, Standing]") -> bool:
        """Whether no stage of it can be at work any more; one may be beside another that failed."""
        first, *others = (standings[stage.digest] for stage in self)
        over = all(isinstance(each, Finished | Failed | Stopped) for each in others)
        return isinstance(first, Failed | Stopped) or (isinstance(first, Finished) and over)

    def ended(self, standings: "Mapping[str, Standing]") -> bool:
        """Whether nothing more is to come of it: a stage failed or was stopped, or all finished."""
        over = any(isinstance(standings[stage.digest], Failed | Stopped) for stage in self)
        return over or self.finished(standings)


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage that ended well, for good."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """A stage that ended badly: the error in words, and the traceback for whoever looks deeper."""

    error: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """A stage with work committed through `step` of `total`, not ended."""

    step: int
    total: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stage of which nothing is committed."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stage of a cell that a person has stopped, with work committed through `step` of `total`.

    No stage folder says so: it is the cell of one study that was stopped.
    """

    step: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"stopped at {100 * self.step // max(self.total, 1)} %"

    @property
    def words(self) -> str:
        """How it stands, and how it goes on."""
        return f"{self}; {GO_ON}"


Outcome: TypeAlias = Finished | Failed
Standing: TypeAlias = Finished | Failed | Begun | Waiting | Stopped
