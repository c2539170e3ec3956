"""A study as a value: what is compared with what, each configuration complete and valid.

Reading is all or nothing: either every name, setting and rule holds, or a StudyError says
everything that does not, each with file, line and the nearest valid name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablation.feasibility import (
    Cache,
    Step,
    check_fits,
    check_workers,
    find_fingerprints,
    train_on,
)
from ablation.labels import check_labels
from ablation.papers import Numbers, Published, Question, by_metric, row_pairs
from ablation.problems import Problem, StudyError, nearest
from ablation.protocol import Direction, Place, Trainer
from ablation.rows import (
    Axis,
    Base,
    Row,
    axes_of,
    check_rows,
    known,
    locate,
    multiply,
    touches,
)
from ablation.settings import flatten, layer, paths, settle
from ablation.sides import Sides, StudyStage
from ablation.studyfile import Layout, StudyFile, parse
from ablation.trainers import TrainerError, load_trainer
from ablation.yamlfile import Document, Trail, read

__all__ = ["AbsentError", "Axis", "Layout", "Row", "Study", "load_study", "study_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A valid study. `rows` are complete configurations of the training stage `train`.

    `metrics` are what its tables show, with the better direction of each: `metric` first, then
    the others of its evaluations, and those of training that claims or papers' numbers name.
    `published` and `printed` are numbers by row, or label, and metric; `questions` are its claims,
    in a grid one for each two rows that they are about. `document` is the file that it was read
    from. `fingerprints` of what its stages read, by name, are there where it was read at a place
    and found to run there.
    """

    name: str
    question: str
    trainer: str
    preset: str
    seeds: tuple[int, ...]
    train: str
    evaluations: tuple[StudyStage, ...]
    references: tuple[StudyStage, ...]
    metric: str
    metrics: Mapping[str, Direction]
    baseline: str
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    layout: Layout | None
    published: Mapping[str, Mapping[str, Published]]
    printed: Mapping[str, Mapping[str, Published]]
    questions: tuple[Question, ...]
    document: Document = field(repr=False, compare=False)
    fingerprints: Mapping[str, str] | None = field(default=None, repr=False, compare=False)


class AbsentError(StudyError):
    """Sound `studies` that cannot run at a place, for data that they read are not at hand."""

    def __init__(self, studies: Iterable[Study], problems: Iterable[Problem]) -> None:
        self.studies = tuple(studies)
        super().__init__(problems)


def load_study(
    path: Path,
    *,
    lookup: Callable[[str], Trainer] = load_trainer,
    place: Place | None = None,
    workers: int = 1,
) -> Study:
    """The study in a file.

    With a `place` it is also asked whether its data are there and serve, and whether `workers` can
    share each stage; without, `plan` will ask.

    Raises StudyError with every problem that can be seen at once; AbsentError where the study is
    sound and data that it reads are not at hand.
    """
    return study_of(read(path), lookup=lookup, place=place, workers=workers)


def study_of(
    document: Document,
    *,
    lookup: Callable[[str], Trainer] = load_trainer,
    place: Place | None = None,
    workers: int = 1,
    cache: Cache | None = None,
) -> Study:
    """The study in a document, as `load_study`; `cache` is for several studies at one place."""
    file, problems = parse(document)
    problems += check_labels(document, file)
    try:
        trainer = None if file.trainer is None else lookup(file.trainer)
    except TrainerError as error:
        trainer = None
        problems.append(document.problem(str(error), "trainer"))
    if trainer is None:
        raise StudyError(problems)
    reading = _Reading(document, file, trainer)
    study = reading.study()
    problems += reading.problems
    sound = study is not None and not problems
    fingerprints, absent = None, list[Problem]()
    if place is not None:
        steps = reading.steps
        fingerprints, absent = find_fingerprints(
            document, trainer, place, steps, cache={} if cache is None else cache
        )
        problems += absent
        if reading.knows_preset:
            problems += check_workers(document, trainer, workers, steps)
            problems += check_fits(document, trainer, place, steps, fingerprints=fingerprints)
    if study is not None and sound and absent:
        raise AbsentError([study], problems)
    if study is None or problems:
        raise StudyError(problems)
    return replace(study, fingerprints=fingerprints)


class _Reading:
    """One file against one trainer: the parts of a study, and the problems met on the way.

    `steps` are all its configurations, as far as they are sound.
    """

    def __init__(self, document: Document, file: StudyFile, trainer: Trainer) -> None:
        self.document = document
        self.file = file
        self.trainer = trainer
        self.stages = trainer.stages()
        self.train = next(name for name, stage in self.stages.items() if stage.kind == "train")
        self.knows_preset = file.preset in trainer.presets()
        self.problems: list[Problem] = []
        self.steps: list[Step] = []

    def study(self) -> Study | None:
        """The study, if nothing is wrong with it."""
        file, preset = self.file, self._preset()
        base = self._base(preset)
        axes = axes_of(file, base.kind)
        rows, partial, problems = multiply(self.document, base, axes)
        self.steps += [train_on(row, self.train) for row in (*rows, *partial)]
        self.problems += problems
        self.problems += check_rows(self.document, axes, rows)
        sides = Sides(self.document, self.trainer, preset, knows_preset=self.knows_preset)
        given = flatten(base.kind, file.set)
        references = tuple(sides.references(file.references, base, given))
        evaluations = tuple(sides.evaluations(file.evaluate))
        self.steps += sides.steps
        self.problems += sides.problems
        metrics = self._metrics()
        self._check_metrics(metrics)
        if self.problems or None in (file.name, file.metric, file.baseline, file.seeds):
            return None
        return Study(
            name=str(file.name),
            question=file.question,
            trainer=self.trainer.name,
            preset=str(file.preset),
            seeds=tuple(file.seeds or ()),
            train=self.train,
            evaluations=evaluations,
            references=references,
            metric=str(file.metric),
            metrics=metrics,
            baseline=str(file.baseline),
            axes=axes,
            rows=rows,
            layout=file.layout,
            published=self._numbers(file.published),
            printed=self._numbers(file.printed),
            questions=tuple(self._questions(axes)),
            document=self.document,
        )

    def _say(self, sentence: str, *trail: str | int) -> None:
        self.problems.append(self.document.problem(sentence, *trail))

    def _preset(self) -> Mapping[str, Mapping[str, Any]]:
        presets, name = self.trainer.presets(), self.file.preset
        if name is not None and name not in presets:
            sentence = f"preset must be one of {self.trainer.name}'s, got {name!r}."
            self._say(sentence + nearest(name, presets), "preset")
        return presets.get(name or "", {})

    def _base(self, preset: Mapping[str, Mapping[str, Any]]) -> Base:
        """Preset and `set`. Its own rules count only where a row still breaks them."""
        kind = self.stages[self.train].config_type
        given, unknown = known(self.document, kind, self.file.set, "set")
        common, absent = known(self.document, kind, preset.get(self.train, {}), "preset")
        self.problems += [*unknown, *absent]
        flat = layer(common, given)
        config, faults = settle(kind, flat)
        wrong = {fault.path: fault.sentence for fault in faults if not fault.rule}
        for path, sentence in wrong.items():
            place = locate(self.document, ("set",), path) or ("preset",)
            self._say(f"{path} {sentence}", *place)
        settings = {path: value for path, value in flat.items() if path not in wrong}
        left_out = (flatten(kind, self.file.set).keys() - given.keys()) | wrong.keys()
        if not self.knows_preset:
            left_out |= {path for path in paths(kind) if not touches(path, given.keys())}
        return Base(
            kind=kind,
            settings=settings,
            faults=faults,
            config=config,
            complete=self.knows_preset,
            left_out=frozenset(left_out),
        )

    def _metrics(self) -> dict[str, Direction]:
        """What can be shown, the study's own metric first."""
        every, metric = self.trainer.metrics(), self.file.metric
        asked = [item if isinstance(item, str) else next(iter(item)) for item in self.file.evaluate]
        ours = {
            name: every[name]
            for stage in [*asked, self.train]
            for name in every
            if name.partition("/")[0] == stage
        }
        if metric is None or metric in ours:
            trained = {name for name in ours if name.partition("/")[0] == self.train}
            asked_of = {name for name, _ in self._named()} | {metric}
            names = sorted(ours, key=lambda name: name != metric)
            return {name: ours[name] for name in names if name in asked_of or name not in trained}
        if metric in every:
            stage = metric.partition("/")[0]
            self._say(f"metric must be of an evaluated stage. Add {stage} to evaluate.", "metric")
        else:
            sentence = f"metric must be one of {self.trainer.name}'s, got {metric!r}."
            self._say(sentence + nearest(metric, ours or every), "metric")
        return ours

    def _check_metrics(self, shown: Mapping[str, Direction]) -> None:
        """See that numbers of papers and claims are of metrics that the table shows."""
        for metric, trail in self._named():
            if metric not in shown:
                sentence = f"{trail[0]} must be of metrics that the table shows, got {metric!r}."
                self._say(sentence + nearest(metric, shown), *trail)

    def _named(self) -> list[tuple[str, Trail]]:
        """The metrics that numbers of papers and claims name, and where."""
        named: list[tuple[str, Trail]] = [
            (metric, (key, label, metric))
            for key, numbers in (("published", self.file.published), ("printed", self.file.printed))
            for label, number in numbers.items()
            if isinstance(number, dict)
            for metric in number
        ]
        named += [
            (claim.metric, ("claims", name, "metric"))
            for name, claim in self.file.claims.items()
            if claim.metric is not None
        ]
        return named

    def _numbers(self, numbers: Mapping[str, Numbers]) -> dict[str, dict[str, Published]]:
        metric = str(self.file.metric)
        return {label: by_metric(number, metric) for label, number in numbers.items()}

    def _questions(self, axes: Sequence[Axis]) -> Iterator[Question]:
        labels = [[level.label for level in axis.levels] for axis in axes]
        for name, claim in self.file.claims.items():
            for better, than in row_pairs(labels, claim.better, claim.than):
                yield Question(
                    name=name,
                    better=better,
                    than=than,
                    metric=claim.metric or str(self.file.metric),
                    claim=claim,
                )
