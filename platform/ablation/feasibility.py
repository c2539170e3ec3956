"""What a study needs of a place: data sets that can be read, workers that its stages can share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.identity import canonical
from ablation.problems import Problem
from ablation.protocol import Trainer
from ablation.rows import Row, locate
from ablation.settings import speaks_of
from ablation.yamlfile import Document, Trail

__all__ = ["Step", "check_workers", "find_fingerprints", "train_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stage of a study without a seed yet; `trails` lead to where it was asked for.

    `left_out` are settings that `config` had to go without, for what they say is wrong.
    """

    label: str
    stage: str
    config: Any
    trails: tuple[Trail, ...]
    left_out: frozenset[str] = frozenset()

    @property
    def data(self) -> str:
        """Canonical form of what a fingerprint depends on: the field `data`, or everything."""
        return canonical(getattr(self.config, "data", self.config))

    @property
    def names_data(self) -> bool:
        """Whether what was left out leaves the data set as it was asked for."""
        whole = not self.left_out
        return whole or (hasattr(self.config, "data") and not self.left_out & {"data", "data.name"})


def train_on(row: Row, stage: str) -> Step:
    """The training stage of a row."""
    return Step(
        label=row.label,
        stage=stage,
        config=row.config,
        trails=row.trails,
        left_out=row.left_out,
    )


def find_fingerprints(
    document: Document,
    trainer: Trainer,
    data: Mapping[str, Path],
    steps: Sequence[Step],
    *,
    known: Mapping[str, str | None],
) -> tuple[dict[str, str | None], list[Problem]]:
    """Fingerprint by `Step.data`, and a problem for each data set that has none.

    Each is asked for once, and what is `known` not again.
    """
    found = dict(known)
    problems = []
    for step in steps:
        if step.data in found or not step.names_data:
            continue
        try:
            found[step.data] = trainer.fingerprint(step.config, data)
        except (LookupError, ValueError, OSError) as error:
            found[step.data] = None
            places = [locate(document, trail, "data.name") for trail in step.trails]
            common = locate(document, ("set",), "data.name") or ("preset",)
            place = next((place for place in places if place), common)
            problems.append(document.problem(_sentence(error), *place))
    return found, problems


def _sentence(error: Exception) -> str:
    match error:
        case OSError(filename=str() | Path() as file, strerror=str() as reason):
            return f"data must be readable, got {str(file)!r}: {reason}."
    # str() of a KeyError is a repr of its sentence.
    return str(error.args[0] if len(error.args) == 1 else error)


def check_workers(
    document: Document, trainer: Trainer, workers: int, steps: Sequence[Step]
) -> Iterator[Problem]:
    """A problem for each reason for which configurations cannot run on so many workers."""
    reasons: dict[str, list[Step]] = {}
    for step in steps:
        reason = trainer.check(step.config, workers)
        if reason and not speaks_of(reason, step.left_out):
            reasons.setdefault(reason, []).append(step)
    for reason, (first, *more) in reasons.items():
        place = ("preset",) if more else first.trails[-1]
        label = "" if more else f"{first.label}: "
        yield document.problem(label + reason, *place)
