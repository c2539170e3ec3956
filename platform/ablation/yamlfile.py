"""Read a YAML 1.2 file into plain values that know their lines.

Only what JSON can say comes out: tags, infinities and repeated keys are problems, and aliases may
not unfold into more than a reader could have typed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from ablation.problems import Problem, StudyError, show

__all__ = ["Document", "Trail", "parse", "read"]

Trail: TypeAlias = tuple[str | int, ...]
"""The keys and indices that lead to a value."""

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_BITS = 1024
"""Of a whole number: what is longer is no float, and Python refuses to print what is far longer."""
REFUSED = object()
"""Stands for a value that became a problem: whatever holds it goes on without it."""
CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file's content, with the line of every value and the words that scalars were written in.

    `text` is what the file held when it was read.
    """

    file: str
    text: str = ""
    content: Any = None
    lines: Mapping[Trail, int] = field(default_factory=dict)
    words: Mapping[Trail, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def line(self, *trail: str | int) -> int:
        """The line of a value, or of the nearest thing around it that exists."""
        while trail and trail not in self.lines:
            trail = trail[:-1]
        return self.lines.get(trail, 1)

    def problem(self, sentence: str, *trail: str | int) -> Problem:
        """A problem at the place that `trail` leads to."""
        return Problem(self.file, self.line(*trail), sentence)


def read(path: Path) -> Document:
    """The document in a file, as `parse` gives it.

    Raises StudyError where the file cannot be read or does not parse.
    """
    return parse(_text(path), str(path))


def parse(text: str, file: str) -> Document:
    """The document in a text, with the problems that leave the rest of it readable.

    Raises StudyError where it does not parse.
    """
    reader = _Reader(file)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        content = None if node is None else reader.value(node, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise StudyError([Problem(file, line, f"must be YAML: {error.problem}.")]) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise StudyError([Problem(file, line, f"must be YAML: {error.reason}.")]) from error
    except RecursionError as error:
        raise StudyError([Problem(file, 1, "must not be nested that deep.")]) from error
    return Document(
        file=file,
        text=text,
        content=None if content is REFUSED else content,
        lines=reader.lines,
        words=reader.words,
        problems=tuple(reader.problems),
    )


def _text(path: Path) -> str:
    sentence = ""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)  # a device may have no end
        if len(content) > MAX_BYTES:
            sentence = f"must not be larger than {MAX_BYTES} bytes."
        else:
            return content.decode("utf-8-sig")
    except FileNotFoundError:
        sentence = "must be a file, but nothing is there. Check the path."
    except IsADirectoryError:
        sentence = "must be a file, got a folder. Name the study's YAML file."
    except OSError as error:
        sentence = f"must be readable: {error.strerror}."
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError([Problem(str(path), line, "must be UTF-8 text.")]) from error
    raise StudyError([Problem(str(path), 1, sentence)])


class _Reader:
    """Unfolds nodes into values, noting where each came from."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Trail, int] = {}
        self.words: dict[Trail, str] = {}
        self.problems: list[Problem] = []

    def value(self, node: Node, trail: Trail) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(trail, line)
        if len(self.lines) > MAX_VALUES:
            sentence = f"must not unfold into more than {MAX_VALUES} values. Use fewer aliases."
            raise StudyError([Problem(self.file, 1, sentence)])
        match node:
            case MappingNode() if node.tag == f"{CORE}map":
                return self._mapping(node, trail)
            case SequenceNode() if node.tag == f"{CORE}seq":
                items = [self.value(item, (*trail, i)) for i, item in enumerate(node.value)]
                return [item for item in items if item is not REFUSED]
            case ScalarNode():
                self.words[trail] = node.value
                return self._scalar(node, line)
        return self._refuse(line, f"must be written without tags, got {node.tag!r}.")

    def _mapping(self, node: MappingNode, trail: Trail) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self._refuse(line, "keys must be plain text.")
                continue
            name = str(key.value)
            if name in found:
                first = self.lines[*trail, name]
                self._refuse(line, f"{name!r} is here twice, first in line {first}. Rename one.")
                continue
            self.lines[*trail, name] = line
            found[name] = self.value(item, (*trail, name))
        return {name: value for name, value in found.items() if value is not REFUSED}

    def _scalar(self, node: ScalarNode, line: int) -> Any:
        try:
            match str(node.tag).removeprefix(CORE):
                case "str" | "timestamp" | "merge" | "value":
                    return node.value
                case "null":
                    return None
                case "bool" if (word := node.value.lower()) in ("true", "false"):
                    return word == "true"
                case "bool":  # YAML 1.1's, which a file can ask for
                    return self._refuse(line, f"must be true or false, got {show(node.value)}.")
                case "int":
                    return _whole(node.value)
                case "float" if isfinite(number := _number(node.value)):
                    return number
                case "float":
                    return self._refuse(line, f"numbers must be finite, got {node.value}.")
        except ValueError:
            return self._refuse(line, f"must be a number, got {show(node.value)}.")
        return self._refuse(line, f"must be written without tags, got {node.tag!r}.")

    def _refuse(self, line: int, sentence: str) -> object:
        self.problems.append(Problem(self.file, line, sentence))
        return REFUSED


def _whole(text: str) -> int:
    number = int(text, 0 if text.lower().lstrip("+-").startswith(("0o", "0x", "0b")) else 10)
    if number.bit_length() > MAX_BITS:
        raise ValueError
    return number


def _number(text: str) -> float:
    """YAML spells the special numbers .inf and .nan."""
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
