"""A worker among its peers: what the lead knows, which all need, and whose fault an error is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ALONE", "Group", "GroupOverError", "LostNodeError"]


class LostNodeError(Exception):
    """A group lost a node, and with it a worker."""


class GroupOverError(Exception):
    """The lead of a group left a stage: its peers may wait for it for ever, so all must end."""


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The lead writes and decides; the others do the same steps.

    `share` gives every worker what the lead passes to it. `blame` is told of an exception of the
    trainer and gives the one that is at the bottom of it: a peer's, where that made this one fail.
    It may take a while, in which a group that has lost a worker is ended. `raised` is what ended
    the group before this one, where its lead did not live to record it.
    """

    workers: int = 1
    lead: bool = True
    share: Callable[[Any], Any] = _same
    blame: Callable[[Exception], Exception] = _same
    raised: Exception | None = None


ALONE = Group()
"""The worker of a cell that has only one."""
