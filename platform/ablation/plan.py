"""A study turned into work: cells, and in each the stages with their identities.

Cells are ordered by seed first, so a table fills evenly: every row has one seed before any has
two. Stages of one identity are one piece of work, however many cells need them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablation.cells import Cell, PlannedStage
from ablation.feasibility import (
    Step,
    check_fits,
    check_workers,
    find_fingerprints,
    train_on,
)
from ablation.identity import digest
from ablation.problems import StudyError, nearest
from ablation.protocol import Place, Trainer
from ablation.study import Study

__all__ = ["Plan", "plan", "reads", "sketch"]


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
    def heads(self) -> list[str]:
        """Digests of the cells' first stages."""
        return list(dict.fromkeys(cell.stages[0].digest for cell in self.cells))

    def called(self, name: str) -> list[Cell]:
        """The cells that people call so: by their row, or by row and seed.

        Raises StudyError where there is none.
        """
        found = [cell for cell in self.cells if name in (cell.row, cell.label, cell.title)]
        if not found:
            names = [*(cell.label for cell in self.cells), *(cell.title for cell in self.cells)]
            sentence = f"the study has no cell {name!r}.{nearest(name, names)}"
            raise StudyError([self.study.document.problem(sentence, "rows")])
        return found

    @property
    def num_stages(self) -> int:
        """Stages as the cells count them; those shared count again in every cell."""
        return sum(len(cell.stages) for cell in self.cells)


def plan(study: Study, trainer: Trainer, place: Place, *, workers: int = 1) -> Plan:
    """The cells of a study at a place.

    What a study that was read at a place has been asked is not asked again.

    Raises StudyError for data that are unknown, absent or unreadable or do not serve, and for
    configurations that cannot run on so many workers.
    """
    steps, document = _steps(study), study.document
    fingerprints, problems = study.fingerprints, [*check_workers(document, trainer, workers, steps)]
    if fingerprints is None:
        fingerprints, absent = find_fingerprints(document, trainer, place, steps, cache={})
        problems += absent
        problems += check_fits(document, trainer, place, steps, fingerprints=fingerprints)
    if problems:
        raise StudyError(problems)
    return _plan(study, trainer, fingerprints)


def sketch(study: Study, trainer: Trainer) -> Plan:
    """The cells of a study of which the data are not at hand: no ledger knows its digests.

    Stages are taken for one where they read what is called the same.
    """
    names = reads(study, trainer)
    return _plan(study, trainer, {name: f"the content of {name}" for name in names})


def reads(study: Study, trainer: Trainer) -> set[str]:
    """The names of all data sets and weights that the study's stages read."""
    return {name for step in _steps(study) for name in step.reads(trainer).values()}


def _steps(study: Study) -> list[Step]:
    """The study's stages without their seeds: rows, then references, then evaluations."""
    sides = (*study.references, *study.evaluations)
    return [
        *(train_on(row, study.train) for row in study.rows),
        *(Step(label=s.label, stage=s.name, config=s.config, trails=(s.trail,)) for s in sides),
    ]


def _plan(study: Study, trainer: Trainer, fingerprints: Mapping[str, str]) -> Plan:
    steps = _steps(study)
    num_rows, num_heads = len(study.rows), len(study.rows) + len(study.references)
    planner = _Planner(trainer, fingerprints)
    cells = [
        Cell(
            row=step.label,
            seed=seed,
            stages=tuple(planner.stages(step, steps[num_heads:], seed)),
            reference=at >= num_rows,
        )
        for seed in study.seeds
        for at, step in enumerate(steps[:num_heads])
    ]
    return Plan(study=study, cells=tuple(cells))


@dataclass(frozen=True, slots=True)
class _Planner:
    """Gives stages their identities."""

    trainer: Trainer
    fingerprints: Mapping[str, str]

    def stages(self, head: Step, after: Sequence[Step], seed: int) -> Iterator[PlannedStage]:
        first = self._stage(head, seed, None)
        yield first
        for step in after:
            yield self._stage(step, seed, first.digest)

    def _stage(self, step: Step, seed: int, parent: str | None) -> PlannedStage:
        reads = self.trainer.reads(step.config)
        data = " ".join(self.fingerprints[reads[path]] for path in sorted(reads)) or None
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
