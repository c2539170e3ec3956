"""Under which terms stages are worked on: what is the same for every stage of a run."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ablation.attempts import Attempt
from ablation.pace import Pace

__all__ = ["Terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """None of it changes a result.

    `run` names the run, which all drivers of a supervisor share, and behind a dot, where stages
    may outlive it, the driver (`retries.run_of`); this one, for leases `driver`, began at
    `queued_ms` (milliseconds since 1970, UTC). Workers of a driver that was lost may still be at
    work, so leases are told apart by driver. A stage is tried again after `max_failures`
    exceptions; a storage that refuses is asked again for `patience_s` seconds. Of several drivers
    on one cluster the one of the highest `priority` has what it wants, and equals share.
    """

    run: str = field(default_factory=lambda: secrets.token_hex(4))
    driver: str = field(default_factory=lambda: secrets.token_hex(4))
    queued_ms: int | None = None
    pace: Pace = field(default_factory=Pace)
    max_failures: int = 1
    patience_s: float = 0.0
    priority: int = 0

    def since(self, attempts: Iterable[Attempt]) -> "Terms":
        """The terms of a stage with these attempts: those since the driver began set the pace."""
        new = (a for a in attempts if self.queued_ms and a.begun_ms >= self.queued_ms)
        return replace(self, pace=self.pace.after(new))
