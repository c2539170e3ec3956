"""What the toy noted of its steps: the truth about what was done, by whom, and when."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Step", "steps_done"]


class Step(NamedTuple):
    """A step of a stage; `which` is its rate and seed, `at` seconds since 1970."""

    stage: str
    number: int
    which: str
    pid: int
    at: float


def steps_done(scratch: Path) -> list[Step]:
    """Every step of every try, in the order of time."""
    file = scratch / "work.txt"
    text = file.read_text() if file.exists() else ""
    lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [Step(s, int(n), which, int(pid), float(at)) for s, n, which, pid, at in lines]
