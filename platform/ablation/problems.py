"""What is wrong with a file, in words for people: each problem with its place, all at once."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

__all__ = ["Problem", "StudyError", "nearest", "show"]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One sentence about one place: what must hold, what was got, what to do.

    `line` 0 is a place without lines, such as the environment.
    """

    file: str
    line: int
    sentence: str

    def __str__(self) -> str:
        at = f":{self.line}" if self.line else ""
        return f"{self.file}{at}: {self.sentence}"


class StudyError(Exception):
    """A study that cannot be run; `problems` holds every reason, by line, each of them once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(got: str, names: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the nearest of `names`, or what there is."""
    known = list(dict.fromkeys(names))
    if close := get_close_matches(got, known, n=1):
        return f" Did you mean {close[0]!r}?"
    if not known:
        return " There is none."
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f" Choose from: {shown}."


def show(value: Any) -> str:
    """A value of a file as its author would recognise it, cut where it is long."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
