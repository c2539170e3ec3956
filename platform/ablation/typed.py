"""JSON of a storage into values of the types that they must have, whoever wrote it."""

import json
from collections.abc import Hashable
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

__all__ = ["Count", "Moment", "Part", "loads", "typed"]

_T = TypeVar("_T")

Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]
Moment: TypeAlias = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]
"""Milliseconds since 1970 (UTC), up to the year 9999."""
Part: TypeAlias = Annotated[str, Field(pattern=r"^[\w-]*$")]
"""A part of a name of a file or folder, perhaps empty."""


def loads(content: bytes | str) -> Any:
    """JSON's value; raises ValueError where it is none, or nested too deep to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it must not be nested that deep") from None


def typed(kind: type[_T], value: Any) -> _T:
    """JSON's value as one of a type, such as a dataclass; what that does not know is left out.

    Raises ValueError where it is none.
    """
    try:
        found: _T = _adapter(cast(Hashable, kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{at}: {first['msg']}") from None
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
