"""One try at a stage: who began it, where, from which step, and how it ended."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from ablation.typed import Count, Moment, loads, typed

__all__ = ["Attempt", "Cause", "Ended"]

Ended: TypeAlias = Literal["finished", "failed", "interrupted", "preempted", "lost"]
"""How an attempt ended.

An attempt that says nothing is running, or died without a word: whoever takes the stage over
records that it was lost, or preempted where it had had notice.
"""

Cause: TypeAlias = Literal["exception", "away", "memory", "final", "node"]
"""Why an attempt failed: an exception, something that is away and may come back, too little memory,
or what no other try can change. Why it was lost, where that is known: with the node of a peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try. `from_step` 0 is from the beginning; times are milliseconds since 1970 (UTC).

    `run` names the call of `ablation run` that it belongs to, which began at `queued_ms`.
    """

    number: Count
    begun_ms: Moment
    from_step: Count
    workers: Count = 1
    run: str = ""
    queued_ms: Moment | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    ended_ms: Moment | None = None
    ended: Ended | None = None
    step: Count | None = None
    """The last step that is known to have been done, committed or not."""
    cause: Cause | None = None
    error: str = ""
    """Of a failure the exception, of a preemption the notice."""

    def to_bytes(self) -> bytes:
        """The attempt as JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def parse(cls, content: bytes) -> "Attempt":
        """The inverse of `to_bytes`.

        Raises ValueError for anything else.
        """
        return cls.of(loads(content))

    @classmethod
    def of(cls, values: Any) -> "Attempt":
        """The attempt of these values by name; what it does not know is left out.

        Raises ValueError where they are not those of an attempt.
        """
        return typed(cls, values)
