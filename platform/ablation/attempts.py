"""One try at a stage: who began it, where, from which step, and how it ended."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Attempt", "Ended"]

Ended: TypeAlias = Literal["finished", "failed", "interrupted"]
"""How an attempt ended; one that says nothing is running, or died without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try. `from_step` 0 is from the beginning; times are milliseconds since 1970 (UTC)."""

    number: int
    begun_ms: int
    from_step: int
    workers: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)
    ended_ms: int | None = None
    ended: Ended | None = None
    step: int | None = None
    """The last step that was done, committed or not."""
    error: str = ""

    def to_bytes(self) -> bytes:
        """The attempt as JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def parse(cls, content: bytes) -> "Attempt":
        """The inverse of `to_bytes`.

        Raises ValueError for content that is not JSON.
        """
        return cls(**json.loads(content))
