"""Dotted settings into a trainer's own configuration: frozen dataclasses that check themselves.

A path leads through nested dataclasses to a field. Values arrive as plain JSON values and are
taken strictly (`yes` is no number, true is no 1), by pydantic; what cannot be becomes faults.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import GenericAlias, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ablation.problems import nearest, show

__all__ = [
    "Fault",
    "describe",
    "flatten",
    "layer",
    "mend",
    "paths",
    "settle",
    "speaks_of",
    "unknown",
]

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a dotted path; `rule` where the configuration's own checks say so."""

    path: str
    sentence: str
    rule: bool = False

    def __str__(self) -> str:
        return f"{self.path} {self.sentence}".strip()


def paths(kind: Any) -> Mapping[str, Any]:
    """Every dotted path into a configuration type, inner nodes too, with the type at its end."""
    return _all_paths(kind)


@cache
def _all_paths(kind: Any) -> Mapping[str, Any]:
    return dict(_paths(kind))


def _paths(kind: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        yield before + name, hint
        for inner in _members(hint):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _paths(inner, f"{before}{name}.")


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_node(hint: Any) -> bool:
    return any(is_dataclass(member) for member in _members(hint))


def flatten(kind: Any, settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by full dotted path: `{mask: {ratio: 0.5}}` says `{mask.ratio: 0.5}`."""
    known = paths(kind)
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        path = before + key
        inner = isinstance(value, Mapping) and (path not in known or _is_node(known[path]))
        flat.update(flatten(kind, value, f"{path}.") if inner else {path: value})
    return flat


def unknown(kind: Any, flat: Mapping[str, Any]) -> list[Fault]:
    """A fault for every path that the configuration type does not have."""
    known = paths(kind)
    return [
        Fault(path, f"is no setting.{nearest(path, known)}") for path in flat if path not in known
    ]


def layer(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings over one another: a later path replaces the same, what is below and above."""
    flat: dict[str, Any] = {}
    for settings in layers:
        for path, value in settings.items():
            kept = {
                old: held
                for old, held in flat.items()
                if not f"{old}.".startswith(f"{path}.") and not path.startswith(f"{old}.")
            }
            flat = {**kept, path: value}
    return flat


def settle(kind: Any, flat: Mapping[str, Any]) -> tuple[Any, list[Fault]]:
    """The configuration of flat settings, or None and every fault that can be seen at once.

    A fault in one part keeps other parts from being checked, so the faulty setting is left out
    and the rest is looked at again; what then speaks of a setting that was left out is no news.
    """
    config, found = _configure(kind, flat)
    rest = dict(flat)
    new = found
    while dropped := {fault.path for fault in new} & rest.keys():
        rest = {path: value for path, value in rest.items() if path not in dropped}
        again = _configure(kind, rest)[1]
        gone = flat.keys() - rest.keys()
        new = [fault for fault in again if fault not in found and not _is_of(fault, gone)]
        found = [*found, *new]
    return config, found


def _is_of(fault: Fault, gone: Set[str]) -> bool:
    return fault.path in gone or speaks_of(fault.sentence, gone)


def speaks_of(sentence: str, gone: Set[str]) -> bool:
    """Whether a sentence is about one of the settings at these paths."""
    leaves = {path.rpartition(".")[2] for path in gone} - {""}
    return any(leaf in sentence for leaf in leaves)


def mend(
    kind: Any, flat: Mapping[str, Any], faults: Sequence[Fault]
) -> tuple[Any, frozenset[str]] | None:
    """The configuration without its faults, and the paths of the settings that were left out.

    Where no configuration is left so, only `data` is kept; None where even that makes none.
    """
    wrong = {fault.path for fault in faults}
    sound = {path: value for path, value in flat.items() if path not in wrong}
    data = {path: value for path, value in sound.items() if path.partition(".")[0] == "data"}
    for kept in (sound, data):
        config, _ = _configure(kind, kept)
        if config is not None:
            return config, frozenset(wrong | (flat.keys() - kept.keys()))
    return None


def _configure(kind: Any, flat: Mapping[str, Any]) -> tuple[Any, list[Fault]]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *nodes, leaf = path.split(".")
        at = nested
        for node in nodes:
            if not isinstance(at.get(node), dict):
                at[node] = {}
            at = at[node]
        at[leaf] = value
    try:
        return _adapter(kind).validate_json(json.dumps([nested]))[0], []
    except ValidationError as error:
        return None, list(dict.fromkeys(_faults(kind, flat, error.errors(include_url=False))))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # A dataclass refuses a configuration from outside; a container hands its own down to it.
    container: Any = GenericAlias(tuple, (kind,))
    return TypeAdapter(container, config=STRICT)


def _faults(kind: Any, flat: Mapping[str, Any], errors: Sequence[ErrorDetails]) -> Iterator[Fault]:
    known = paths(kind)
    for error in errors:
        path = _field_path(known, error["loc"][1:])
        raised = error.get("ctx", {}).get("error")
        if raised is not None:
            for inner, sentence in getattr(raised, "problems", None) or [_named(known, raised)]:
                yield Fault(".".join(part for part in (path, inner) if part), sentence, rule=True)
        elif error["type"].startswith("missing"):
            yield Fault(path, f"must be set to {describe(known[path])}.")
        else:
            got = flat.get(path, error["input"])
            hint = known[path]
            near = nearest(str(got), _choices(hint))
            near = near if near.startswith(" Did") else ""
            yield Fault(path, f"must be {describe(hint)}, got {show(got)}.{near}")


def _named(known: Mapping[str, Any], raised: object) -> tuple[str, str]:
    """An error that names no path in a structured way may still begin with one."""
    path, _, sentence = str(raised).partition(" ")
    return (path, sentence) if path in known else ("", str(raised))


def _field_path(known: Mapping[str, Any], location: tuple[int | str, ...]) -> str:
    """The longest path that names fields; pydantic adds indices and members of unions."""
    path = ""
    for part in location:
        if (longer := f"{path}.{part}" if path else str(part)) in known:
            path = longer
    return path


def _choices(hint: Any) -> tuple[str, ...]:
    members = [
        m for member in _members(hint) if get_origin(member) is Literal for m in get_args(member)
    ]
    return tuple(str(member) for member in members)


def describe(hint: Any) -> str:
    """What a type admits, in words."""
    match get_origin(hint), get_args(hint):
        case (origin, members) if origin in (Union, UnionType):
            return " or ".join(describe(member) for member in members)
        case (origin, choices) if origin is Literal:
            return f"one of {', '.join(str(choice) for choice in choices)}"
        case (origin, (item, end)) if origin is tuple and end is Ellipsis:
            return f"a list, each {describe(item)}"
        case (origin, items) if origin is tuple:
            kinds = dict.fromkeys(describe(item) for item in items)
            return f"a list of {len(items)}, each {' or '.join(kinds)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if hint is NoneType:
        return "null"
    return words.get(hint, "settings of its own" if is_dataclass(hint) else str(hint))
