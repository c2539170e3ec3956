"""A study turned into work: cells, and in each the stages with their identities.

Cells are ordered by seed first, so a table fills evenly: every row has one seed before any has
two. Stages of one identity are one piece of work, however many cells need them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.cells import Cell, PlannedStage
from ablation.identity import canonical, digest
from ablation.problems import Problem, StudyError
from ablation.protocol import Trainer
from ablation.rows import locate
from ablation.study import Study
from ablation.yamlfile import Trail

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All the work of a study, in the order in which it should begin."""

    study: Study
    cells: tuple[Cell, ...]

    @property
    def stages(self) -> Mapping[str, PlannedStage]:
        """Distinct stages by digest, parents before their children."""
        return {stage.digest: stage for cell in self.cells for stage in cell}

    @property
    def num_stages(self) -> int:
        """Stages as the cells count them; those shared count again in every cell."""
        return sum(len(cell.stages) for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A stage of the study without a seed yet; `trails` lead to where it was asked for."""

    label: str
    stage: str
    config: Any
    trails: tuple[Trail, ...]

    @property
    def data(self) -> str:
        return canonical(getattr(self.config, "data", self.config))


def plan(study: Study, trainer: Trainer, data: Mapping[str, Path], *, workers: int = 1) -> Plan:
    """The cells of a study, for data sets that lie at `data` (name to path).

    Fingerprints are asked for once per distinct value of a configuration's field `data` (of the
    whole configuration where it has no such field).

    Raises StudyError for data sets that are unknown, absent or unreadable, and for configurations
    that cannot run on so many workers.
    """
    rows = [
        _Step(label=row.label, stage=study.train, config=row.config, trails=row.trails)
        for row in study.rows
    ]
    sides = [
        _Step(label=side.name, stage=side.name, config=side.config, trails=(side.trail,))
        for side in (*study.references, *study.evaluations)
    ]
    references, evaluations = sides[: len(study.references)], sides[len(study.references) :]
    fingerprints, problems = _fingerprints(study, trainer, data, [*rows, *sides])
    problems += _cannot_run(study, trainer, workers, [*rows, *sides])
    if problems:
        raise StudyError(problems)
    planner = _Planner(trainer, fingerprints)
    cells = [
        Cell(
            row=step.label,
            seed=seed,
            stages=tuple(planner.stages(step, evaluations, seed)),
            reference=step in references,
        )
        for seed in study.seeds
        for step in [*rows, *references]
    ]
    return Plan(study=study, cells=tuple(cells))


def _fingerprints(
    study: Study, trainer: Trainer, data: Mapping[str, Path], steps: Sequence[_Step]
) -> tuple[dict[str, str | None], list[Problem]]:
    """Fingerprint by data settings, and a problem for each data set that has none."""
    found: dict[str, str | None] = {}
    problems = []
    for step in steps:
        if step.data in found:
            continue
        try:
            found[step.data] = trainer.fingerprint(step.config, data)
        except (LookupError, ValueError) as error:
            found[step.data] = None
            # str() of a KeyError is a repr of its sentence.
            sentence = str(error.args[0] if error.args else error)
            places = [locate(study.document, trail, "data.name") for trail in step.trails]
            common = locate(study.document, ("set",), "data.name") or ("preset",)
            place = next((place for place in places if place), common)
            problems.append(study.document.problem(sentence, *place))
    return found, problems


def _cannot_run(
    study: Study, trainer: Trainer, workers: int, steps: Sequence[_Step]
) -> Iterator[Problem]:
    reasons: dict[str, list[_Step]] = {}
    for step in steps:
        if reason := trainer.check(step.config, workers):
            reasons.setdefault(reason, []).append(step)
    for reason, (first, *more) in reasons.items():
        place = ("preset",) if more else first.trails[-1]
        label = "" if more else f"{first.label}: "
        yield study.document.problem(label + reason, *place)


@dataclass(frozen=True, slots=True)
class _Planner:
    """Gives stages their identities."""

    trainer: Trainer
    fingerprints: Mapping[str, str | None]

    def stages(self, head: _Step, after: Sequence[_Step], seed: int) -> Iterator[PlannedStage]:
        first = self._stage(head, seed, None)
        yield first
        for step in after:
            yield self._stage(step, seed, first.digest)

    def _stage(self, step: _Step, seed: int, parent: str | None) -> PlannedStage:
        data = self.fingerprints[step.data]
        return PlannedStage(
            name=step.stage,
            kind=self.trainer.stages()[step.stage].kind,
            digest=digest(
                trainer=self.trainer.name,
                result_version=self.trainer.result_version,
                stage=step.stage,
                config=step.config,
                seed=seed,
                data=data,
                parent=parent,
            ),
            config=step.config,
            seed=seed,
            data=data,
            parent=parent,
        )
