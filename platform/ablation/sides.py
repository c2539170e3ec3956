"""The stages beside training that a study asks for: evaluations, and references.

Both are named alone or with settings, and these count more than anything the study says of all
rows. A reference takes its other settings from what all rows have in common.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from ablation.feasibility import Step
from ablation.identity import canonical
from ablation.problems import Problem, nearest
from ablation.protocol import Kind, Trainer
from ablation.rows import Base, known, locate, touches
from ablation.settings import Fault, flatten, layer, mend, paths, settle
from ablation.yamlfile import Document, Trail

__all__ = ["Item", "Sides", "StudyStage"]

Item: TypeAlias = str | Mapping[str, Mapping[str, Any]]
"""A stage as a list names it: alone, or with settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStage:
    """A stage beside training that a study asks for: an evaluation, or a reference."""

    label: str
    name: str
    config: Any
    trail: Trail


class Sides:
    """Reads the stages beside training of one file.

    `problems` are those met on the way, `steps` the configurations as far as they are sound.
    """

    def __init__(
        self,
        document: Document,
        trainer: Trainer,
        preset: Mapping[str, Mapping[str, Any]],
        *,
        knows_preset: bool,
    ) -> None:
        self.document = document
        self.trainer = trainer
        self.stages = trainer.stages()
        self.preset = preset
        self.knows_preset = knows_preset
        self.problems: list[Problem] = []
        self.steps: list[Step] = []

    def evaluations(self, items: Sequence[Item]) -> Iterator[StudyStage]:
        """Each evaluation once."""
        seen = set[str]()
        for name, settings, trail in self._known("evaluate", items, "name evaluations"):
            if name in seen:
                self._say(f"evaluate must name a stage once, got {name!r} again.", *trail)
            else:
                yield from self._evaluation(name, settings, trail)
            seen.add(name)

    def references(
        self, items: Sequence[Item], base: Base, given: Mapping[str, Any]
    ) -> Iterator[StudyStage]:
        """Yardsticks, each of the common configuration as far as it has the same fields.

        What the preset says of a yardstick itself counts more, then what was `given` for all rows,
        and its own settings most.
        """
        first: dict[tuple[str, str], StudyStage] = {}
        for name, settings, trail in self._known("reference", items, "be stages"):
            for stage in self._reference(name, settings, trail, base=base, given=given):
                twin = first.setdefault((name, canonical(stage.config)), stage)
                if twin is stage:
                    yield stage
                else:
                    self._say(
                        f"reference {stage.label!r} must differ from reference {twin.label!r}, but "
                        "the two are one configuration. Change a setting or drop one.",
                        *trail,
                    )

    def _say(self, sentence: str, *trail: str | int) -> None:
        self.problems.append(self.document.problem(sentence, *trail))

    def _known(
        self, kind: Kind, items: Sequence[Item], must: str
    ) -> Iterator[tuple[str, Mapping[str, Any], Trail]]:
        """The items that are stages of a kind: name, settings, and where they were asked for."""
        names = [name for name, stage in self.stages.items() if stage.kind == kind]
        key = "evaluate" if kind == "evaluate" else "references"
        for at, item in enumerate(items):
            name, settings = (item, {}) if isinstance(item, str) else next(iter(item.items()))
            trail: Trail = (key, at) if isinstance(item, str) else (key, at, name)
            if name in names:
                yield name, settings, trail
            else:
                sentence = f"{key} must {must} of {self.trainer.name}, got {name!r}."
                self._say(sentence + nearest(name, names), *trail)

    def _flat(
        self, kind: type[Any], settings: Mapping[str, Any], *trail: str | int
    ) -> dict[str, Any]:
        flat, problems = known(self.document, kind, settings, *trail)
        self.problems += problems
        return flat

    def _evaluation(self, name: str, own: Mapping[str, Any], trail: Trail) -> Iterator[StudyStage]:
        kind = self.stages[name].config_type
        preset = self._flat(kind, self.preset.get(name, {}), "preset")
        given = self._flat(kind, own, *trail)
        flat = layer(preset, given)
        config, faults = settle(kind, flat)
        for fault in faults:
            if place := locate(self.document, trail, fault.path):
                self._say(f"{name}: {fault}", *place)
            elif self.knows_preset:
                self._say(f"{name}: {fault}", *(("preset",) if fault.path in preset else trail))
        stage = StudyStage(label=name, name=name, config=config, trail=trail)
        yield from self._keep(stage, flat, faults, flatten(kind, own).keys() - given.keys())

    def _reference(
        self,
        name: str,
        own: Mapping[str, Any],
        trail: Trail,
        *,
        base: Base,
        given: Mapping[str, Any],
    ) -> Iterator[StudyStage]:
        kind = self.stages[name].config_type
        common = base.settings if base.config is None else flatten(base.kind, asdict(base.config))
        shared = {path: held for path, held in common.items() if path in paths(kind)}
        preset = self._flat(kind, self.preset.get(name, {}), "preset")
        settings = self._flat(kind, own, *trail)
        for_all = {path: shared[path] for path in given if path in shared}
        flat = layer(shared, preset, for_all, settings)
        config, faults = settle(kind, flat)
        for fault in faults:
            place = locate(self.document, trail, fault.path)
            place = place or locate(self.document, ("set",), fault.path)
            if place or self.knows_preset:
                of_all = fault.path in flat or fault in base.faults
                self._say(str(fault), *(place or (("preset",) if of_all else trail)))
        said = ", ".join(f"{path}: {_shown(value)}" for path, value in settings.items())
        label = f"{name} ({said})" if said else name
        left_out = {path for path in base.left_out if not touches(path, settings.keys())}
        left_out |= flatten(kind, own).keys() - settings.keys()
        stage = StudyStage(label=label, name=name, config=config, trail=trail)
        yield from self._keep(stage, flat, faults, left_out)

    def _keep(
        self,
        stage: StudyStage,
        flat: Mapping[str, Any],
        faults: Sequence[Fault],
        left_out: Set[str],
    ) -> Iterator[StudyStage]:
        """A stage without faults; what is sound of it is a step in any case."""
        mended = mend(self.stages[stage.name].config_type, flat, faults)
        if mended and self.knows_preset:
            self.steps.append(
                Step(
                    label=stage.label,
                    stage=stage.name,
                    config=mended[0],
                    trails=(stage.trail,),
                    left_out=mended[1] | left_out,
                )
            )
        if not faults:
            yield stage


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
