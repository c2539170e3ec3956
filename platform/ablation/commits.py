"""What a stage's commit objects say: a checkpoint with the journal it rests on, or an outcome."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, assert_never

from ablation.attempts import Attempt
from ablation.cells import Failed, Finished, Outcome
from ablation.journal import Record, metrics_from_json, metrics_to_json, parse_lines
from ablation.manifest import (
    DamageError,
    Manifest,
    manifest_from_json,
    manifest_to_json,
    seal,
    unseal,
)
from ablation.storage import Stored
from ablation.typed import Count, Part, typed

__all__ = ["Commit", "Ending", "Restored", "Segment", "ended_by", "manifest_of", "segment_of"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the journal, and what it holds."""

    name: str
    stored: Stored
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A committed state: `folder` is what the trainer saved after `step`, to be read only."""

    step: int
    total: int
    segments: tuple[Segment, ...]
    folder: Path

    @property
    def records(self) -> tuple[Record, ...]:
        """The record through `step`."""
        return tuple(record for segment in self.segments for record in segment.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A checkpoint: its files, and the journal's segments through its step, in order.

    `name` is that of its folder and, with `.json`, of the commit object.
    """

    name: str
    step: Count
    total: Count
    files: Manifest
    journal: Manifest

    def to_bytes(self) -> bytes:
        """The commit object."""
        return seal(
            {
                "name": self.name,
                "step": self.step,
                "total": self.total,
                "files": manifest_to_json(self.files),
                "journal": manifest_to_json(self.journal),
            }
        )

    @classmethod
    def parse(cls, content: bytes) -> "Commit":
        """The inverse of `to_bytes`.

        Raises ValueError or KeyError for anything else.
        """
        body = unseal(content)
        return cls(
            name=typed(Part, body["name"]),
            step=typed(Count, body["step"]),
            total=typed(Count, body["total"]),
            files=manifest_from_json(body["files"]),
            journal=manifest_from_json(body["journal"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """An outcome with what a finished stage leaves: its artifacts and its whole journal.

    `name` is that of the artifacts' folder. `last` is the attempt that came to this end: it may
    have died before its own record said so.
    """

    outcome: Outcome
    name: str = ""
    artifacts: Manifest = field(default_factory=dict)
    journal: Manifest = field(default_factory=dict)
    last: Attempt | None = None

    def to_bytes(self) -> bytes:
        """The commit object."""
        return seal(
            {
                **_outcome_to_json(self.outcome),
                "name": self.name,
                "artifacts": manifest_to_json(self.artifacts),
                "journal": manifest_to_json(self.journal),
                "last": None if self.last is None else asdict(self.last),
            }
        )

    @classmethod
    def parse(cls, content: bytes) -> "Ending":
        """The inverse of `to_bytes`.

        Raises ValueError or KeyError for anything else.
        """
        body = unseal(content)
        return cls(
            outcome=_outcome_from_json(body),
            name=typed(Part, body["name"]),
            artifacts=manifest_from_json(body["artifacts"]),
            journal=manifest_from_json(body["journal"]),
            last=Attempt.of(last) if (last := body.get("last")) else None,
        )


def ended_by(
    attempts: Sequence[Attempt], ending: Callable[[], Ending | None]
) -> tuple[Attempt, ...]:
    """The attempts; one that does not say how it ended as the outcome says (asked only then)."""
    last = None
    if any(attempt.ended is None for attempt in attempts) and (held := ending()):
        last = held.last
    return tuple(
        last if last and attempt.ended is None and attempt.number == last.number else attempt
        for attempt in attempts
    )


def segment_of(name: str, stored: Stored, content: bytes, *, at: str) -> Segment:
    """A file of the journal, which lies `at`; raises DamageError where it holds no records."""
    try:
        return Segment(name, stored, parse_lines(content))
    except ValueError as error:
        raise DamageError(f"{at} must hold records: {error}.") from None


def manifest_of(segments: Sequence[Segment]) -> Manifest:
    """The journal's files as a manifest."""
    return {segment.name: segment.stored for segment in segments}


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Finished(metrics):
            return {"outcome": "finished", "metrics": metrics_to_json(metrics)}
        case Failed(error, detail):
            return {"outcome": "failed", "error": error, "detail": detail}
        case _:
            assert_never(outcome)


def _outcome_from_json(body: dict[str, Any]) -> Outcome:
    if body["outcome"] == "finished":
        return Finished(metrics_from_json(body["metrics"]))
    return Failed(typed(str, body["error"]), typed(str, body["detail"]))
