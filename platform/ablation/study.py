"""A study as a value: what is compared with what, each configuration complete and valid.

Reading is all or nothing: either every name, setting and rule holds, or a StudyError says
everything that does not, each with file, line and the nearest valid name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablation.feasibility import (
    Step,
    check_fits,
    check_workers,
    find_fingerprints,
    train_on,
)
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
from ablation.studyfile import Layout, Published, StudyFile, parse
from ablation.trainers import TrainerError, load_trainer
from ablation.yamlfile import Document, read

__all__ = ["AbsentError", "Axis", "Layout", "Published", "Row", "Study", "load_study"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A valid study. `rows` are complete configurations of the training stage `train`.

    `metrics` are what its tables show, with the better direction of each: `metric` first, then
    the others of its evaluations. `document` is the file that it was read from. `fingerprints` of
    what its stages read, by name, are there where it was read at a place and found to run there.
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
    published: Mapping[str, Published]
    document: Document = field(repr=False, compare=False)
    fingerprints: Mapping[str, str] | None = field(default=None, repr=False, compare=False)


class AbsentError(StudyError):
    """A sound `study` that cannot run at a place, for data that it reads are not at hand."""

    def __init__(self, study: Study, problems: Iterable[Problem]) -> None:
        self.study = study
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
    document = read(path)
    file, problems = parse(document)
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
        fingerprints, absent = find_fingerprints(document, trainer, place, steps)
        problems += absent
        if reading.knows_preset:
            problems += check_workers(document, trainer, workers, steps)
            problems += check_fits(document, trainer, place, steps, fingerprints)
    if study is not None and sound and absent:
        raise AbsentError(study, problems)
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
            published={
                label: number if isinstance(number, Published) else Published(value=number)
                for label, number in file.published.items()
            },
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
            evaluated = [name for name in ours if name.partition("/")[0] != self.train]
            first = [] if metric is None else [metric]
            return {name: ours[name] for name in [*first, *evaluated]}
        if metric in every:
            stage = metric.partition("/")[0]
            self._say(f"metric must be of an evaluated stage. Add {stage} to evaluate.", "metric")
        else:
            sentence = f"metric must be one of {self.trainer.name}'s, got {metric!r}."
            self._say(sentence + nearest(metric, ours or every), "metric")
        return ours
