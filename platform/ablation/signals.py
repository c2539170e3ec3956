"""What a running stage is asked and told from outside: to stop, and of its machine's coming end."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Signals"]


@dataclass(slots=True, kw_only=True)
class Signals:
    """What is asked of a running stage; each question is put after every step.

    `notice` is what is known of this machine's coming end, empty while nothing is. The trainer
    hears of a stop through `stopped`: once steps are done, never before it was looked at here.
    """

    should_stop: Callable[[], bool]
    notice: Callable[[], str]
    stop: bool = False
    noticed: str = ""
    asked: bool = False
    looked: bool = False

    def look(self) -> bool:
        """Ask; whether the answers call for a commit."""
        self.looked = True
        notice, stop = self.notice(), self.should_stop()
        new = (stop and not self.stop) or notice not in ("", self.noticed)
        self.noticed, self.stop = notice or self.noticed, stop or self.stop
        return new

    def stopped(self) -> bool:
        """Whether a stop was asked for.

        A trainer that asks again before its first step is preparing something long: there is
        nothing to commit, so it hears of a stop at once.
        """
        if self.asked and not self.looked:
            self.stop = self.stop or self.should_stop()
        self.asked = True
        return self.stop
