"""What a study's numbers say to a claim: reproduced, contradicted, or undecided, and what it lacks.

Only the interval of the paired difference decides, and only where no number is missing: so a claim
is never decided by one seed, nor before all the seeds that the study asks for are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from ablation.papers import Question
from ablation.protocol import Direction
from ablation.statistics import MOST_SEEDS, Difference, further_seeds, paired, verdict

__all__ = ["Answer", "Finding", "answer"]

Finding: TypeAlias = Literal["reproduced", "contradicted", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A claim's answer: `difference` is of `better` minus `than`, `missing` what is not there."""

    question: Question
    finding: Finding
    difference: Difference | None
    missing: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The finding; where there is none, what it takes."""
        if self.finding != "undecided":
            return self.finding
        if self.missing:
            first, *others = self.missing
            more = f" and {len(others)} more" if others else ""
            return f"undecided (missing: {first}{more})"
        match None if self.difference is None else further_seeds(self.difference):
            case None:
                needed = "at least 1 more seed"
            case 1:
                needed = "1 more seed"
            case count if count > MOST_SEEDS:
                needed = f"over {MOST_SEEDS} more seeds"
            case count:
                needed = f"{count} more seeds"
        return f"undecided ({needed} needed)"


def answer(
    question: Question,
    direction: Direction,
    *,
    better: Mapping[int, float],
    than: Mapping[int, float],
    missing: Sequence[str],
) -> Answer:
    """The answer of two rows' numbers by seed; `missing` says in words which are not there."""
    difference = paired(better, than)
    return Answer(
        question=question,
        finding="undecided" if missing or not difference else _found(difference, direction),
        difference=difference,
        missing=tuple(missing),
    )


def _found(difference: Difference, direction: Direction) -> Finding:
    match found := verdict(difference, direction):
        case "better":
            return "reproduced"
        case "worse":
            return "contradicted"
        case "undecided":
            return "undecided"
    assert_never(found)
