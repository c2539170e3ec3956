"""What a study needs of a place: data that can be read, and that serve; workers that can share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ablation.identity import canonical
from ablation.problems import Problem
from ablation.protocol import Place, Trainer
from ablation.rows import Row, locate
from ablation.settings import speaks_of
from ablation.yamlfile import Document, Trail

__all__ = ["Cache", "Step", "check_fits", "check_workers", "find_fingerprints", "train_on"]

Cache: TypeAlias = dict[tuple[str, str], str]
"""Fingerprints that were found at a place, by trainer and name: reading data takes its time."""

_NAMED = 5
"""Rows that one problem names."""


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

    def reads(self, trainer: Trainer) -> dict[str, str]:
        """What it reads by itself, as `Trainer.reads`, as far as that is what was asked for."""
        return {
            path: name
            for path, name in trainer.reads(self.config).items()
            if not any(f"{path}.".startswith(f"{gone}.") for gone in self.left_out)
        }


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
    place: Place,
    steps: Sequence[Step],
    *,
    cache: Cache,
) -> tuple[dict[str, str], list[Problem]]:
    """Fingerprints by name, and a problem for each name that has none; each is asked for once."""
    found: dict[str, str] = {}
    absent: dict[str, Problem] = {}
    for step in steps:
        for path, name in step.reads(trainer).items():
            if name in found or name in absent:
                continue
            try:
                found[name] = cache.get((trainer.name, name)) or trainer.fingerprint(
                    path, name, place
                )
                cache[trainer.name, name] = found[name]
            except (LookupError, ValueError, OSError) as error:
                places = (locate(document, trail, path) for trail in step.trails)
                common = locate(document, ("set",), path) or ("preset",)
                at = next((at for at in places if at), common)
                absent[name] = document.problem(_sentence(error), *at)
    return found, list(absent.values())


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


def check_fits(
    document: Document,
    trainer: Trainer,
    place: Place,
    steps: Sequence[Step],
    *,
    fingerprints: Mapping[str, str],
) -> Iterator[Problem]:
    """A problem for each reason for which a row cannot run, or an evaluation on what rows export.

    Only of configurations that are whole, and of which all that they read has a fingerprint.
    """
    whole = [
        step
        for step in steps
        if not step.left_out and all(name in fingerprints for name in step.reads(trainer).values())
    ]
    kinds = {name: stage.kind for name, stage in trainer.stages().items()}
    heads = [step for step in whole if kinds[step.stage] != "evaluate"]
    distinct: dict[tuple[str, str], Step] = {}
    for head in heads:
        distinct.setdefault((head.stage, canonical(head.config)), head)
    unfit: dict[tuple[str, Trail], list[str]] = {}
    for head in distinct.values():
        if reason := trainer.fits(head.config, None, place):
            at = _where_it_reads(document, trainer, head)
            unfit.setdefault((reason, at), []).append(head.label)
    for (reason, at), labels in unfit.items():
        yield document.problem(f"{_named(labels)}: {reason}", *at)
    for step in (step for step in whole if kinds[step.stage] == "evaluate"):
        reasons: dict[str, list[str]] = {}
        for head in distinct.values():
            if reason := trainer.fits(step.config, head.config, place):
                mark = " (reference)" if kinds[head.stage] == "reference" else ""
                reasons.setdefault(reason, []).append(head.label + mark)
        for reason, labels in reasons.items():
            sentence = f"{step.label} on {_named(labels)}: {reason}"
            yield document.problem(sentence, *step.trails[-1])


def _where_it_reads(document: Document, trainer: Trainer, step: Step) -> Trail:
    """Where a step's own settings name what it reads, for that does not fit; else where it is."""
    places = (
        locate(document, trail, path) for trail in step.trails for path in step.reads(trainer)
    )
    return next((at for at in places if at), step.trails[-1])


def _named(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(labels[:_NAMED]) + more
