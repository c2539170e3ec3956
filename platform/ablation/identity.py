"""What makes two stages one: the canonical form of all that determines a result, and its digest.

Key order is none, 1 and 1.0 are one value, a tuple is a list, a dataclass is its fields with the
defaults filled in. Labels, paths, workers and package versions are not part of it.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

__all__ = ["NAME", "NAME_RULE", "canonical", "digest"]

NAME = re.compile(r"[^\W_](?:[\w .-]{0,98}[\w.-])?")
"""What a study may be called: a folder of this name can be on any storage."""
NAME_RULE = (
    "1 to 100 letters, digits, spaces and _.-, beginning with a letter or digit and not ending "
    "with a space"
)


def canonical(value: Any) -> str:
    """The one JSON text of a value.

    Raises ValueError for numbers that are not finite, TypeError for what JSON cannot say.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(
    *,
    trainer: str,
    result_version: int,
    stage: str,
    config: Any,
    seed: int,
    data: str | None,
    parent: str | None,
) -> str:
    """Identity of a stage: 20 hexadecimal digits (80 bits) of the SHA-256 of its canonical form."""
    text = canonical(
        {
            "trainer": trainer,
            "result_version": result_version,
            "stage": stage,
            "config": config,
            "seed": seed,
            "data": data,
            "parent": parent,
        }
    )
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not isfinite(value):
                raise ValueError(f"an identity must be of finite numbers, got {value}.")
            # -0.0 is whole, so it becomes 0 here.
            return int(value) if value.is_integer() else value
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise TypeError("an identity must have text as keys.")
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    raise TypeError(f"an identity must be of plain values, got {type(value).__name__}.")
