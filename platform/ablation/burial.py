"""How an attempt ended whose process did not live to say so."""

from dataclasses import replace

from ablation.attempts import Attempt
from ablation.claims import Claim
from ablation.group import LostNodeError
from ablation.retries import cause_of, said

__all__ = ["buried"]


def buried(attempt: Attempt, claim: Claim | None, raised: Exception | None) -> Attempt:
    """The attempt as it ended, by its process's last claim and what is known to have ended it."""
    if claim is not None:
        step = max(claim.step, attempt.from_step)
        attempt = replace(attempt, ended_ms=claim.now_ms, step=step)
    if raised is not None and not isinstance(raised, LostNodeError):
        return replace(attempt, ended="failed", cause=cause_of(raised), error=said(raised))
    if claim is not None and claim.notice:
        return replace(attempt, ended="preempted", error=claim.notice)
    return replace(attempt, ended="lost", cause=None if raised is None else "node")
