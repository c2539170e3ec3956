"""How many cells each of several drivers may have at work: fair, the more urgent first."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Claimant", "shares"]

_NOTHING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """A driver: how urgent its studies are, how many of its cells could be at work, and are now.

    The cluster holds `slots` of them at a time, where it has nothing else to do.
    """

    name: str
    priority: int = 0
    wants: int
    slots: int
    at_work: int = 0


def shares(claimants: Sequence[Claimant]) -> dict[str, int]:
    """How many cells of each may be at work, by name.

    Who is more urgent takes all that it wants before others. Among equals the next cell is always
    one of whoever has the smallest part of the cluster, of equal parts whoever stands first.
    """
    left, got = 1.0, dict.fromkeys((each.name for each in claimants), 0)
    for priority in sorted({each.priority for each in claimants}, reverse=True):
        while open_ := [
            each
            for each in claimants
            if each.priority == priority
            and got[each.name] < min(each.wants, each.slots)
            and 1 / each.slots <= left + _NOTHING
        ]:
            least = min(open_, key=lambda each: got[each.name] / each.slots)
            got[least.name] += 1
            left -= 1 / least.slots
    return got
