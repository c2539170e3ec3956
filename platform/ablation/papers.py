"""What a study file repeats of papers: numbers that somebody printed, and claims to be answered."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)

from ablation.plain import is_plain

__all__ = [
    "Claim",
    "Numbers",
    "Part",
    "Published",
    "Question",
    "Words",
    "by_metric",
    "credits_of",
    "row_pairs",
    "unpublished",
]


def _words(text: str) -> str:
    if not is_plain(text):
        raise ValueError
    return text


Words: TypeAlias = Annotated[str, AfterValidator(_words)]
"""Text that only says something: it has no control characters, nor turns its own direction."""
Status: TypeAlias = Literal["author", "second-hand"]
"""Whether something was read in an author's own source."""
Number: TypeAlias = Annotated[Decimal, WithJsonSchema({"type": "number"})]
"""As it was printed: 81.40 keeps its zero."""


class Part(BaseModel):
    """A part of a study file: what it does not name is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Published(Part):
    """A number that somebody printed: where, and whether it was read in an author's own source."""

    value: Number
    source: Words = ""
    status: Status | None = None
    note: Words = ""


class Claim(Part):
    """That one row, or level of an axis, is better than another, in the study's metric or in one.

    `says` is the claim in words, `source` where it was made.
    """

    better: str
    than: str
    metric: str | None = None
    says: Words = ""
    source: Words = ""
    status: Status | None = None


def _form(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "published" if isinstance(value, Published) else "number"
    return "metrics" if any("/" in str(key) for key in value) else "published"


Numbers: TypeAlias = Annotated[
    Annotated[Number, Tag("number")]
    | Annotated[Published, Tag("published")]
    | Annotated[dict[str, Number | Published], Field(min_length=1), Tag("metrics")],
    Discriminator(_form),
]
"""A row's numbers: one of the study's metric, or several by metric (`stage/metric`)."""


def by_metric(numbers: Numbers, metric: str) -> dict[str, Published]:
    """Numbers by the metric that they are of; `metric` is the study's."""
    named = numbers if isinstance(numbers, dict) else {metric: numbers}
    return {
        name: number if isinstance(number, Published) else Published(value=number)
        for name, number in named.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A claim about two rows, by their labels."""

    name: str
    better: str
    than: str
    metric: str
    claim: Claim

    @property
    def pair(self) -> tuple[str, str]:
        """The two rows."""
        return self.better, self.than


def credits_of(
    numbers: Mapping[str, Mapping[str, Published]], questions: Iterable[Question]
) -> Iterator[str]:
    """Sentences for readers: where numbers (by row and metric) and claims are from, each once."""
    published = [(label, each) for label, row in numbers.items() for each in row.values()]
    origins = (_from(each.source, each.status) for _, each in published if each.source)
    if sources := dict.fromkeys(origins):
        yield f"Published: {'; '.join(sources)}."
    for label, note in dict.fromkeys((label, each.note) for label, each in published if each.note):
        yield f"{label}, published: {note}."
    for name, claim in {question.name: question.claim for question in questions}.items():
        if said := [part for part in (_from(claim.source, claim.status), claim.says) if part]:
            yield f"Claim {name}: {': '.join(said)}."


def unpublished(labels: Sequence[str], numbers: Collection[str]) -> Iterator[str]:
    """The rows to which nobody's number can be held, where `numbers` has that of others."""
    without = [label for label in labels if label not in numbers]
    if numbers and without:
        yield f"No published reference: {', '.join(without)}."


def _from(source: str, status: Status | None) -> str:
    return f"{source} ({status})" if source and status else source or status or ""


def row_pairs(axes: Sequence[Sequence[str]], better: str, than: str) -> Iterator[tuple[str, str]]:
    """The rows that a claim is about, for axes of labels; none where its labels fit no two rows.

    Levels of one axis are compared in every combination of the other axes.
    """
    rows = [" / ".join(labels) for labels in product(*axes)]
    if better == than:
        return
    if better in rows and than in rows:
        yield better, than
        return
    holding = [at for at, levels in enumerate(axes) if better in levels and than in levels]
    if len(holding) == 1:
        (at,) = holding
        for before in product(*axes[:at]):
            for after in product(*axes[at + 1 :]):
                one, other = ((*before, name, *after) for name in (better, than))
                yield " / ".join(one), " / ".join(other)
