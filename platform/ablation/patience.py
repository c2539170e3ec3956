"""Waiting for a storage that refuses: a full disk, a server that is down, a network that is cut."""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BRIEF", "IMPATIENT", "Patience", "Waits"]

_TOLD_AFTER_S = 1.5
"""A refusal that passes sooner is not worth a word."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a storage that refuses is asked again, and who is told why nothing goes on."""

    seconds: float
    say: Callable[[str], None]

    def waits(self) -> "Waits":
        """Those of one request, from now on."""
        return Waits(self, time.monotonic())


@dataclass(slots=True)
class Waits:
    """The waits of one request."""

    patience: Patience
    begun: float
    count: int = 0
    told: bool = False

    def wait(self, refusal: str) -> bool:
        """Wait before the next try; False where there is to be none."""
        waited = time.monotonic() - self.begun
        left = self.patience.seconds - waited
        if left <= 0:
            return False
        if waited >= _TOLD_AFTER_S and not self.told:
            self.told = True
            self.patience.say(f"{refusal} Waiting for the storage, for up to {left:.0f} s.")
        time.sleep(min(2.0 ** min(self.count - 2, 4), left))  # 0.25 s, then twice that, to 16 s
        self.count += 1
        return True

    def over(self) -> None:
        """The request was granted."""
        if self.told:
            waited = time.monotonic() - self.begun
            self.patience.say(f"The storage answers again after {waited:.0f} s.")


def _unheard(message: str) -> None:
    """Nobody waits, so nobody is told."""


IMPATIENT = Patience(0.0, _unheard)
"""Nobody waits: a refusal is an error at once."""

BRIEF = Patience(2.0, _unheard)
"""That of a process which was told to end at once: what passes soon is no refusal."""
