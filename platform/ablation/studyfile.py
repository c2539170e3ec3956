"""The shape of a study file, before a trainer has been asked whether it makes sense.

Every field's description completes the sentence "<key> must be ...": it is the error message and
the text that an editor shows.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from ablation.identity import NAME, NAME_RULE
from ablation.papers import Claim, Numbers, Part, Published, Words
from ablation.problems import Problem, StudyError, nearest, show
from ablation.yamlfile import Document, Trail

__all__ = ["Label", "Layout", "Name", "StudyFile", "parse"]

REQUIRED = ("name", "trainer", "preset", "seeds", "metric", "baseline")
NAMES = ("name", "trainer", "preset", "metric", "baseline")
NUMBERS = (
    "a number or {value, source, status: author or second-hand, note}, or with these by metric"
)
DEPTH = {"rows": 2, "published": 2, "printed": 2, "claims": 2, "grid": 3}
"""How deep a wrong part is cut out; all of a key where it is not named here."""
LAST_SEED = 2**32 - 1
LONGEST = 500
"""Characters of a label: MLflow's tags and a figure's margin have to hold it."""
_FILE_NAME = 255
"""Bytes that file systems give a name."""


def _label(text: str) -> str:
    if not text.strip() or text != text.strip() or not text.isprintable() or len(text) > LONGEST:
        raise ValueError
    return text


def _name(text: str) -> str:
    if not NAME.fullmatch(text) or len(text.encode()) > _FILE_NAME:
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


Name: TypeAlias = Annotated[str, AfterValidator(_name)]
"""Of a study, or of a file that includes several."""
Label: TypeAlias = Annotated[str, AfterValidator(_label)]
"""Printable text without spaces around it, of 500 characters at most."""
Level: TypeAlias = Annotated[Label, AfterValidator(_level)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=LAST_SEED)]
Settings: TypeAlias = Annotated[
    dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)
]
Stage: TypeAlias = str | Annotated[dict[str, Settings], Field(min_length=1, max_length=1)]


class Layout(Part):
    """Which axis of a grid runs down and which across."""

    down: str
    across: str


class StudyFile(Part):
    """A study as written. What is None was not given."""

    name: Name | None = Field(default=None, description=NAME_RULE)
    question: Words = Field(default="", description="printable text")
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
    published: dict[str, Numbers] = Field(
        default_factory=dict, description=f"row labels, each with {NUMBERS}"
    )
    printed: dict[Label, Numbers] = Field(
        default_factory=dict, description=f"printable labels that are no rows, each with {NUMBERS}"
    )
    claims: dict[Label, Claim] = Field(
        default_factory=dict,
        description="names, each with {better: label, than: label}, where wanted with metric, "
        "says, source, and status: author or second-hand",
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
            return file, [*document.problems, *problems, *_check_shape(document, file)]


def _as_written(document: Document) -> dict[str, Any]:
    """Names keep the words that they were written in: `baseline: 0.50` is the row `0.50`.

    Numbers of papers keep their digits.
    """
    content = {key: value for key, value in document.content.items() if value is not None}
    for name in NAMES:
        if name in content:
            content[name] = document.words.get((name,), content[name])
    for key in ("layout", "claims"):
        if key in content:
            content[key] = _words(document, content[key], (key,))
    for key in ("published", "printed"):
        if key in content:
            content[key] = _digits(document, content[key], (key,))
    return content


def _words(document: Document, value: Any, trail: Trail) -> Any:
    if isinstance(value, dict):
        return {name: _words(document, inner, (*trail, name)) for name, inner in value.items()}
    return None if value is None else document.words.get(trail, value)


def _digits(document: Document, value: Any, trail: Trail) -> Any:
    match value:
        case dict():
            return {name: _digits(document, inner, (*trail, name)) for name, inner in value.items()}
        case float():
            return Decimal(document.words[trail])
        case int() if not isinstance(value, bool):
            return Decimal(value)
    return value


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
        inner: dict[str, type[BaseModel]] = {
            "layout": Layout,
            "published": Published,
            "printed": Published,
            "claims": Claim,
        }
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
