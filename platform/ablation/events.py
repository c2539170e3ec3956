"""What a running stage says of itself, for progress displays and trackers.

Events are news, not truth: what the ledger holds is true whether or not anybody listened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ablation.journal import Record

__all__ = ["Event", "EventKind", "Observe"]

EventKind: TypeAlias = Literal[
    "begun",
    "resumed",
    "progress",
    "committed",
    "noticed",
    "paused",
    "damaged",
    "finished",
    "failed",
    "retried",
    "interrupted",
    "busy",
    "found",
    "skipped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to the stage `digest`, called `name` in its cell.

    `message` is why it failed (`retried`: and is tried again), which end was announced
    (`noticed`), what the storage refuses (`paused`) or holds no more (`damaged`), who else is at it
    (`busy`), how it had ended already (`found`) or why it is not run (`skipped`). `metrics` are
    those of the step (`progress`) or the final ones (`finished`). `records` are the journal's
    records that just became part of the ledger (`committed`, `finished`): each record is in exactly
    one such event unless its writer died right after the commit.
    """

    digest: str
    name: str
    kind: EventKind
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    message: str = ""


Observe: TypeAlias = Callable[[Event], None]
"""Where events go. It must not raise: an error of an observer ends the attempt."""
