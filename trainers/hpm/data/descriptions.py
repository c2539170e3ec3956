"""What the Hugging Face `datasets` library writes of a Parquet file's columns.

It stands in the schema's metadata under `huggingface`: JSON, and in it `info.features`, an object
for each column. Of ours `names` (of the classes) counts, and of an annotation `void`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpm.data.errors import DataError

__all__ = ["read_descriptions"]

_OURS = ("label", "annotation")


def read_descriptions(
    metadata: Mapping[bytes, bytes] | None, path: Path
) -> Mapping[str, Mapping[str, Any]]:
    """What a schema's metadata say of each column; nothing where they say nothing of any.

    Raises:
        DataError: they are no JSON, or not of the form that the library gives them.
    """
    try:
        said = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "", f"be JSON ({error})") from error
    info = _object(said, "", path).get("info", {})
    features = _object(_object(info, ".info", path).get("features", {}), ".info.features", path)
    for column in _OURS:
        where = f".info.features.{column}"
        names = _object(features.get(column, {}), where, path).get("names")
        if not (names is None or isinstance(names, list)):
            raise _malformed(path, f"{where}.names", f"be a list, got {names!r}")
    return features


def _object(value: Any, where: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(path, where, f"be an object, got {repr(value)[:80]}")
    return value


def _malformed(path: Path, where: str, rule: str) -> DataError:
    return DataError(
        f"{path} is malformed: `huggingface{where}` of its schema's metadata must {rule}. Write it "
        "anew, with the library `datasets` or without these metadata."
    )
