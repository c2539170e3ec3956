"""The shape of a study file, before a trainer has been asked whether it makes sense.

Every field's description completes the sentence "<key> must be ...": it is the error message and
the text that an editor shows.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ablation.identity import NAME, NAME_RULE
from ablation.problems import Problem, StudyError, nearest, show
from ablation.yamlfile import Document, Trail

__all__ = ["Layout", "Published", "StudyFile", "parse"]

REQUIRED = ("name", "trainer", "preset", "seeds", "metric", "baseline")
NAMES = ("name", "trainer", "preset", "metric", "baseline")
DEPTH = {"rows": 2, "published": 2, "grid": 3}
"""How deep a wrong part is cut out; all of a key where it is not named here."""
LAST_SEED = 2**32 - 1


def _label(text: str) -> str:
    if not text.strip() or text != text.strip() or not text.isprintable():
        raise ValueError
    return text


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError
    return text


def _level(text: str) -> str:
    if " / " in text:
        raise ValueError
    return text


def _distinct(items: list[Any]) -> list[Any]:
    if len(items) != len({str(item) for item in items}):
        raise ValueError
    return items


Label: TypeAlias = Annotated[str, AfterValidator(_label)]
Level: TypeAlias = Annotated[Label, AfterValidator(_level)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=LAST_SEED)]
Settings: TypeAlias = Annotated[
    dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)
]
Stage: TypeAlias = str | Annotated[dict[str, Settings], Field(min_length=1, max_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Layout(_Model):
    """Which axis of a grid runs down and which across."""

    down: str
    across: str


class Published(_Model):
    """A number that somebody printed: where, and whether it was read in an author's own source."""

    value: float
    source: str = ""
    status: Literal["author", "second-hand"] | None = None


class StudyFile(_Model):
    """A study as written. What is None was not given."""

    name: Annotated[str, AfterValidator(_name)] | None = Field(default=None, description=NAME_RULE)
    question: str = Field(default="", description="text")
    trainer: str | None = Field(default=None, description="the name of an installed trainer")
    preset: str | None = Field(default=None, description="the name of one of the trainer's presets")
    set: Settings = Field(
        default_factory=dict,
        description="settings by dotted path, for all rows, such as {optim.base_lr: 1e-4}",
    )
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        default=None,
        description=f"a list of at least one whole number from 0 to {LAST_SEED}, all different",
    )
    evaluate: list[Stage] = Field(
        default_factory=list,
        description="a list of stages, each a name or {name: settings}, "
        "such as [knn, {linear: {epochs: 90}}]",
    )
    metric: str | None = Field(default=None, description="a name like stage/metric")
    baseline: str | None = Field(default=None, description="the label of the row to compare with")
    rows: Annotated[dict[Label, Settings], Field(min_length=1)] | None = Field(
        default=None,
        description="at least one printable label, each with settings by dotted path, "
        "such as {random: {mask.hard_share: 0}}",
    )
    grid: (
        Annotated[
            dict[Label, Annotated[dict[Level, Settings], Field(min_length=1)]], Field(min_length=1)
        ]
        | None
    ) = Field(
        default=None,
        description="at least one axis, each with at least one level (no ' / ' in its label), "
        "each with settings by dotted path",
    )
    layout: Layout | None = Field(
        default=None, description="{down: axis, across: axis}, naming the two axes of the grid"
    )
    references: list[Stage] = Field(
        default_factory=list,
        description="a list of the trainer's reference stages, each a name or {name: settings}, "
        "such as [random, {checkpoint: {weights: mae-b}}]",
    )
    published: dict[str, float | Published] = Field(
        default_factory=dict,
        description="row labels, each with a number or "
        "{value, source, status: author or second-hand}",
    )


def parse(document: Document) -> tuple[StudyFile, list[Problem]]:
    """The study file in a document, and what is wrong with its shape; wrong parts are left out.

    Raises StudyError where the document is no mapping at all.
    """
    needs = f"A study needs {', '.join(REQUIRED)} and rows or a grid."
    if document.content is None:
        raise StudyError([*document.problems, document.problem(f"must not be empty. {needs}")])
    if not isinstance(document.content, dict):
        got = show(document.content)
        raise StudyError([document.problem(f"must be keys with values, got {got}. {needs}")])
    content = _as_written(document)
    problems = [
        document.problem(f"{key} must be given: {StudyFile.model_fields[key].description}.")
        for key in REQUIRED
        if key not in content and ((key,) not in document.lines or key in document.content)
    ]
    while True:
        try:
            file = StudyFile.model_validate(content)
        except ValidationError as error:
            details = error.errors(include_url=False)
            trails = [_trail(document, detail["loc"]) for detail in details]
            for detail, trail in zip(details, trails, strict=True):
                # A union complains once for each of its members: the one that got deepest knows.
                if not any(trail == other[: len(trail)] != other for other in trails):
                    problems.append(_problem(document, detail, trail))
                content = _without(content, trail[: DEPTH.get(str(trail[0]), 1)])
        else:
            rules = [*_check_shape(document, file), *_check_labels(document, file)]
            return file, [*document.problems, *problems, *rules]


def _as_written(document: Document) -> dict[str, Any]:
    """Names keep the words that they were written in: `baseline: 0.50` is the row `0.50`."""
    content = {key: value for key, value in document.content.items() if value is not None}
    for name in NAMES:
        if name in content:
            content[name] = document.words.get((name,), content[name])
    if isinstance(layout := content.get("layout"), dict):
        content["layout"] = {
            name: document.words.get(("layout", name), axis) for name, axis in layout.items()
        }
    return content


def _trail(document: Document, location: Trail) -> Trail:
    """Where an error is: pydantic adds members of unions, and names fields that are not there."""
    trail: Trail = ()
    for part in location:
        if (*trail, part) in document.lines:
            trail = (*trail, part)
    return trail


def _problem(document: Document, detail: ErrorDetails, trail: Trail) -> Problem:
    key = str(trail[0])
    if detail["type"] == "extra_forbidden":
        inner: dict[str, type[BaseModel]] = {"layout": Layout, "published": Published}
        model = inner.get(key, StudyFile)
        near = nearest(str(trail[-1]), model.model_fields)
        place = key if key in inner else "a study"
        return document.problem(f"{str(trail[-1])!r} is no key of {place}.{near}", *trail)
    must = StudyFile.model_fields[key].description
    return document.problem(f"{key} must be {must}, got {show(detail['input'])}.", *trail)


def _without(content: Mapping[str, Any], trail: Trail) -> dict[str, Any]:
    """Content without what is at `trail`, and without what is empty then."""
    key, *rest = trail
    left = {name: value for name, value in content.items() if name != key}
    if rest and key in content and (inner := _without(content[str(key)], tuple(rest))):
        left[str(key)] = inner
    return left


def _check_shape(document: Document, file: StudyFile) -> Iterator[Problem]:
    """Rules between the keys of a file that no trainer is needed for."""
    given = document.content.keys() & {"rows", "grid"}
    if len(given) != 1:
        got = "both" if given else "neither"
        yield document.problem(f"a study must have either rows or a grid, got {got}.", "grid")
    axes = [] if file.grid is None else list(file.grid)
    if file.layout is not None:
        for key, axis in (("down", file.layout.down), ("across", file.layout.across)):
            if axis not in axes:
                sentence = f"layout.{key} must be an axis of the grid, got {axis!r}."
                yield document.problem(sentence + nearest(axis, axes), "layout", key)
        if len(axes) != 2 or file.layout.down == file.layout.across:
            sentence = "layout must name the two axes of a grid of two, one down and one across."
            yield document.problem(sentence, "layout")


def _row_labels(document: Document, file: StudyFile) -> list[str]:
    """Labels as written, those of rows too that are wrong otherwise."""
    rows, grid = document.content.get("rows"), document.content.get("grid")
    if isinstance(rows, dict):
        return list(rows)
    if not isinstance(grid, dict) or not grid:
        return []
    down = file.layout.down if file.layout else None
    axes = [grid[name] for name in sorted(grid, key=lambda name: down is not None and name != down)]
    levels = [list(axis) if isinstance(axis, dict) else [] for axis in axes]
    return [" / ".join(labels) for labels in product(*levels)]


def _check_labels(document: Document, file: StudyFile) -> Iterator[Problem]:
    labels = _row_labels(document, file)
    named: list[tuple[str, Trail, str]]
    named = [] if file.baseline is None else [(file.baseline, ("baseline",), "baseline")]
    named += [(label, ("published", label), "a label in published") for label in file.published]
    for label, trail, what in named:
        if labels and label not in labels:
            sentence = f"{what} must be a row, got {label!r}.{nearest(label, labels)}"
            yield document.problem(sentence, *trail)
