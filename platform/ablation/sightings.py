"""What one process sees of others' claims on a stage: whose beats go on, and who must be dead."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ablation.claims import Claim, claims_at
from ablation.process import Process
from ablation.storage import Storage

__all__ = ["Sightings"]


@dataclass(slots=True, kw_only=True)
class Sightings:
    """The looks of a process `me`, which works for `run`.

    A claim is dead whose beat stands still for `expiry_s`, by the clock of who looks. Of that a
    look itself counts `most_s` at most: a storage that is slow, or refuses and is asked again,
    keeps the holder's beats back too.
    """

    run: str
    me: Process
    most_s: float
    expiry_s: float
    clock: Callable[[], float]
    began: float = 0.0
    """When the last look began, and (`ended`) ended, in seconds that count."""
    ended: float = 0.0
    answered: float = 0.0
    """When the last look ended, by `clock`."""
    before: frozenset[str] | None = None
    """Claims of the same run at the first look; later ones are successors of this process."""
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Beat of a claim when it was first seen, and the end of that look."""

    def look(self, storage: Storage, path: str) -> dict[str, Claim]:
        """The claims that are there now."""
        asked = self.clock()
        self.began = self.ended + asked - self.answered
        claims = claims_at(storage, path)
        self.answered = self.clock()
        self.ended = self.began + min(self.answered - asked, self.most_s)
        for name, claim in claims.items():
            self.seen.setdefault(name, (claim.beat, self.ended))
        if self.before is None:
            self.before = frozenset(n for n, claim in claims.items() if claim.run == self.run)
        return claims

    def alive(self, claim: Claim) -> bool:
        """Whether its beat has gone on, and it is at work."""
        return claim.beat != self.seen[claim.name][0] and not self._over(claim)

    def dead(self, claim: Claim) -> bool:
        """Whether its process cannot be at work."""
        # From the end of one look to the beginning of another.
        return self._over(claim) or self.began - self.seen[claim.name][1] >= self.expiry_s

    def _over(self, claim: Claim) -> bool:
        before = self.before or ()
        return claim.over or claim.name in before or bool(claim.process.gone(self.me))
