"""A study as a value: what is compared with what, each configuration complete and valid.

Reading is all or nothing: either every name, setting and rule holds, or a StudyError says
everything that does not, each with file, line and the nearest valid name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
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
from ablation.protocol import Direction, Kind, Place, Trainer
from ablation.rows import Axis, Base, Row, axes_of, check_rows, locate, multiply, touches
from ablation.settings import Fault, flatten, layer, mend, paths, settle, unknown
from ablation.studyfile import Layout, Published, StudyFile, parse
from ablation.trainers import TrainerError, load_trainer
from ablation.yamlfile import Document, Trail, read

__all__ = ["Axis", "Layout", "Published", "Row", "Study", "StudyStage", "load_study"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStage:
    """A stage beside training that a study asks for: an evaluation, or a reference."""

    name: str
    config: Any
    trail: Trail


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

    Raises StudyError with every problem that can be seen at once.
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
    fingerprints = None
    if place is not None:
        steps = reading.steps
        fingerprints, absent = find_fingerprints(document, trainer, place, steps)
        problems += absent
        if reading.knows_preset:
            problems += check_workers(document, trainer, workers, steps)
            problems += check_fits(document, trainer, place, steps, fingerprints)
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
        self.train = self._names("train")[0]
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
        references = tuple(self._references(base, preset))
        evaluations = tuple(self._evaluations(preset))
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

    def _names(self, kind: Kind) -> list[str]:
        return [name for name, stage in self.stages.items() if stage.kind == kind]

    def _preset(self) -> Mapping[str, Mapping[str, Any]]:
        presets, name = self.trainer.presets(), self.file.preset
        if name is not None and name not in presets:
            sentence = f"preset must be one of {self.trainer.name}'s, got {name!r}."
            self._say(sentence + nearest(name, presets), "preset")
        return presets.get(name or "", {})

    def _flat(
        self, kind: type[object], settings: Mapping[str, Any], *trail: str | int
    ) -> dict[str, Any]:
        """Settings by full path, without those that do not exist: these become problems."""
        flat = flatten(kind, settings)
        wrong = unknown(kind, flat)
        for fault in wrong:
            place = locate(self.document, trail, fault.path) or trail
            self._say(str(fault), *place)
        return {path: flat[path] for path in flat.keys() - {fault.path for fault in wrong}}

    def _base(self, preset: Mapping[str, Mapping[str, Any]]) -> Base:
        """Preset and `set`. Its own rules count only where a row still breaks them."""
        kind = self.stages[self.train].config_type
        given = self._flat(kind, self.file.set, "set")
        flat = layer(self._flat(kind, preset.get(self.train, {}), "preset"), given)
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

    def _keep(
        self,
        stage: StudyStage,
        flat: Mapping[str, Any],
        faults: Sequence[Fault],
        left_out: Set[str] = frozenset(),
    ) -> Iterator[StudyStage]:
        """A stage without faults; what is sound of it is a step in any case."""
        mended = mend(self.stages[stage.name].config_type, flat, faults)
        if mended and self.knows_preset:
            self.steps.append(
                Step(
                    label=stage.name,
                    stage=stage.name,
                    config=mended[0],
                    trails=(stage.trail,),
                    left_out=mended[1] | left_out,
                )
            )
        if not faults:
            yield stage

    def _evaluations(self, preset: Mapping[str, Mapping[str, Any]]) -> Iterator[StudyStage]:
        known, seen = self._names("evaluate"), set[str]()
        for at, item in enumerate(self.file.evaluate):
            name, settings = (item, {}) if isinstance(item, str) else next(iter(item.items()))
            trail = ("evaluate", at) if isinstance(item, str) else ("evaluate", at, name)
            if name not in known:
                sentence = f"evaluate must name evaluations of {self.trainer.name}, got {name!r}."
                self._say(sentence + nearest(name, known), *trail)
            elif name in seen:
                self._say(f"evaluate must name a stage once, got {name!r} again.", *trail)
            else:
                yield from self._evaluation(name, preset.get(name, {}), settings, trail)
            seen.add(name)

    def _references(
        self, base: Base, preset: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[StudyStage]:
        """Yardsticks, each of the common configuration as far as it has the same fields.

        What the preset says of a yardstick itself counts more, and `set` counts most.
        """
        known = self._names("reference")
        for at, name in enumerate(self.file.references):
            if name not in known:
                sentence = f"references must be stages of {self.trainer.name}, got {name!r}."
                self._say(sentence + nearest(name, known), "references", at)
                continue
            kind = self.stages[name].config_type
            common = (
                base.settings if base.config is None else flatten(base.kind, asdict(base.config))
            )
            shared = {path: held for path, held in common.items() if path in paths(kind)}
            own = self._flat(kind, preset.get(name, {}), "preset")
            given = {p: shared[p] for p in flatten(base.kind, self.file.set) if p in shared}
            flat = layer(shared, own, given)
            config, faults = settle(kind, flat)
            for fault in faults:
                self._say(str(fault), *(locate(self.document, ("set",), fault.path) or ("preset",)))
            stage = StudyStage(name=name, config=config, trail=("references", at))
            yield from self._keep(stage, flat, faults, base.left_out)

    def _evaluation(
        self, name: str, common: Mapping[str, Any], own: Mapping[str, Any], trail: Trail
    ) -> Iterator[StudyStage]:
        kind = self.stages[name].config_type
        preset = self._flat(kind, common, "preset")
        given = self._flat(kind, own, *trail)
        flat = layer(preset, given)
        config, faults = settle(kind, flat)
        for fault in faults:
            if place := locate(self.document, trail, fault.path):
                self._say(f"{name}: {fault}", *place)
            elif self.knows_preset:
                self._say(f"{name}: {fault}", *(("preset",) if fault.path in preset else trail))
        unknown_paths = flatten(kind, own).keys() - given.keys()
        stage = StudyStage(name=name, config=config, trail=trail)
        yield from self._keep(stage, flat, faults, unknown_paths)

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
