"""What the toy noted of its steps: the truth about what was done, by whom, and when."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Step", "steps_done"]


class Step(NamedTuple):
    """A step of a stage; `which` is its rate and seed, `at` seconds since 1970.

    Of a group's workers the one of rank 0 leads.
    """

    stage: str
    number: int
    which: str
    pid: int
    at: float
    rank: int


def steps_done(scratch: Path) -> list[Step]:
    """Every step of every try, in the order of time."""
    file = scratch / "work.txt"
    text = file.read_text() if file.exists() else ""
    lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [
        Step(stage, int(number), which, int(pid), float(at), int(rank))
        for stage, number, which, pid, at, rank in lines
    ]
