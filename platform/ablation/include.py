"""A file that stands for several studies: it includes their files, and says nothing else of them.

What they share is trained once without a word here, for the ledger knows a stage by its digest.
"""

from collections.abc import Collection
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from ablation.identity import NAME_RULE
from ablation.papers import Part, Words
from ablation.problems import Problem, StudyError, nearest, show
from ablation.studyfile import Label, Name
from ablation.yamlfile import Document, Trail, read

__all__ = ["IncludeFile", "Included", "include"]


class IncludeFile(Part):
    """The file as written."""

    name: Name = Field(description=NAME_RULE)
    question: Words = Field(default="", description="printable text")
    include: Annotated[list[Label], Field(min_length=1)] = Field(
        description="a list of at least one study's file, relative to this one"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Included:
    """The studies' files, each once, in order, and what is wrong with those that include them.

    `name` and `question` are of the file that was asked for; empty where that is a study.
    """

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...] = ()
    name: str = ""
    question: str = ""


def include(path: Path) -> Included:
    """The studies that a file stands for: itself where it includes none.

    Raises StudyError where the file cannot be read.
    """
    document = read(path)
    if not _includes(document):
        return Included(documents=(document,))
    walk = _Walk()
    file = walk.visit(document, path, (_resolved(path),))
    return Included(
        documents=tuple(walk.found.values()),
        problems=tuple(walk.problems),
        name=file.name,
        question=file.question,
    )


def _includes(document: Document) -> bool:
    return isinstance(document.content, dict) and "include" in document.content


class _Walk:
    """From file to file, with the studies that were `found` by their resolved paths."""

    def __init__(self) -> None:
        self.found: dict[str, Document] = {}
        self.problems: list[Problem] = []

    def visit(self, document: Document, path: Path, within: tuple[str, ...]) -> IncludeFile:
        """Take up what a file includes that `within`, from the first file to it, led to."""
        self.problems += document.problems
        file, named = self._parse(document), set[str]()
        for at, name in enumerate(file.include):
            member = _resolved(path.parent / name)
            if sentence := _refusal(member, within, named):
                self._say(document, ("include", at), f"include {sentence}, got {name!r}.")
            else:
                self._enter(path.parent / name, (*within, member))
            named.add(member)
        return file

    def _enter(self, path: Path, within: tuple[str, ...]) -> None:
        """Take up a study or what another file includes, where it is not there already."""
        if within[-1] in self.found:
            return
        try:
            document = read(path)
        except StudyError as error:
            self.problems += error.problems
            return
        if _includes(document):
            self.visit(document, path, within)
        else:
            self.found[within[-1]] = document

    def _parse(self, document: Document) -> IncludeFile:
        """The file in a document, without what is wrong in it."""
        content = dict(document.content)
        if "name" in content:
            content["name"] = document.words.get(("name",), content["name"])
        try:
            return IncludeFile.model_validate(content)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                key = str(detail["loc"][0])
                if detail["type"] == "extra_forbidden":
                    near = nearest(key, IncludeFile.model_fields)
                    sentence = f"{key!r} is no key of a file that includes studies.{near}"
                elif detail["type"] == "missing":
                    sentence = f"{key} must be given: {IncludeFile.model_fields[key].description}."
                else:
                    must = IncludeFile.model_fields[key].description
                    sentence = f"{key} must be {must}, got {show(detail['input'])}."
                self._say(document, detail["loc"], sentence)
                content.pop(key, None)
            return IncludeFile.model_construct(**{"name": "", "include": [], **content})

    def _say(self, document: Document, trail: Trail, sentence: str) -> None:
        self.problems.append(document.problem(sentence, *trail))


def _resolved(path: Path) -> str:
    """The one name of a file; empty where none can be reached by this one."""
    try:
        return realpath(path, strict=True)
    except OSError:
        return ""


def _refusal(member: str, within: Collection[str], named: Collection[str]) -> str:
    """What must hold of a file and does not; empty where all does."""
    if not member:
        return "must name files that are there, relative to this one"
    if member in within:
        return "must not lead back to where it began"
    return "must name a file once" if member in named else ""
