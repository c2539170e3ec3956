"""The JSON Schema of study files for one trainer: what an editor completes and underlines."""

from typing import Any

from pydantic import TypeAdapter

from ablation.include import IncludeFile
from ablation.protocol import Kind, Trainer
from ablation.settings import paths
from ablation.studyfile import REQUIRED, StudyFile

__all__ = ["json_schema"]


def json_schema(trainer: Trainer) -> dict[str, Any]:
    """Schema of a study file (draft 2020-12) with the trainer's own names and settings in it."""
    schema = StudyFile.model_json_schema()
    fields, shared = schema["properties"], schema.setdefault("$defs", {})
    stages = trainer.stages()
    for stage in stages:
        shared[f"{stage}-settings"] = _settings(stages[stage].config_type)
    (train,) = _named(trainer, "train")
    settings = {"$ref": f"#/$defs/{train}-settings"}
    level = {"anyOf": [settings, {"type": "null"}]}
    levels = {"type": "object", "minProperties": 1, "additionalProperties": level}
    fields["trainer"] |= {"const": trainer.name}
    fields["preset"] |= {"enum": sorted(trainer.presets())}
    fields["metric"] |= {"enum": sorted(trainer.metrics())}
    fields["set"] |= settings
    fields["rows"] |= levels
    fields["grid"] |= {"type": "object", "minProperties": 1, "additionalProperties": levels}
    fields["references"]["items"] = _stage(_named(trainer, "reference"))
    fields["evaluate"]["items"] = _stage(_named(trainer, "evaluate"))
    numbers = _numbers(fields["published"]["additionalProperties"]["oneOf"], trainer)
    for name in ("published", "printed"):
        fields[name]["additionalProperties"] = numbers
    shared["Claim"]["properties"]["metric"] = {"enum": [*sorted(trainer.metrics()), None]}
    for name, field in fields.items():
        if name in REQUIRED or name in ("rows", "grid", "layout"):
            _given(field)
    return {
        **schema,
        **_either(fields),
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A study of {trainer.name}, or a file that includes several",
    }


def _either(fields: dict[str, Any]) -> dict[str, Any]:
    """What a study needs, or a file that includes several, whose own key joins the `fields`."""
    several = IncludeFile.model_json_schema()
    fields["include"] = several["properties"]["include"]
    return {
        "if": {"required": ["include"]},
        "then": {
            "required": several["required"],
            "propertyNames": {"enum": list(several["properties"])},
        },
        "else": {
            "required": list(REQUIRED),
            "oneOf": [{"required": ["rows"]}, {"required": ["grid"]}],
        },
    }


def _named(trainer: Trainer, kind: Kind) -> list[str]:
    return [name for name, stage in trainer.stages().items() if stage.kind == kind]


def _settings(kind: type[Any]) -> dict[str, Any]:
    """The dotted settings of a configuration type, each with what it admits."""
    admitted = {path: TypeAdapter(hint).json_schema() for path, hint in paths(kind).items()}
    return {
        "type": "object",
        "properties": {path: _inlined(schema) for path, schema in admitted.items()},
        "additionalProperties": False,
    }


def _numbers(forms: list[Any], trainer: Trainer) -> dict[str, Any]:
    """Numbers of a row: those without a metric, which come first in `forms`, or by metric."""
    alone = forms[:2]
    by_metric = {
        "type": "object",
        "minProperties": 1,
        "properties": {name: {"anyOf": alone} for name in sorted(trainer.metrics())},
        "additionalProperties": False,
    }
    return {"anyOf": [*alone, by_metric]}


def _inlined(schema: Any) -> Any:
    """A schema without references, for it moves into another: groups of settings are objects."""
    if isinstance(schema, list):
        return [_inlined(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema or schema.get("type") == "object":
        return {"type": "object"}
    return {key: _inlined(value) for key, value in schema.items() if key != "$defs"}


def _stage(names: list[str]) -> dict[str, Any]:
    with_settings = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {
            name: {"anyOf": [{"$ref": f"#/$defs/{name}-settings"}, {"type": "null"}]}
            for name in names
        },
    }
    return {"anyOf": [{"enum": names}, with_settings]}


def _given(field: dict[str, Any]) -> None:
    """Drop the null that stands for "not given": in a file that is an absent key."""
    kinds = [kind for kind in field.pop("anyOf", []) if kind != {"type": "null"}]
    field.pop("default", None)
    if kinds and "additionalProperties" not in field:
        field |= {key: value for key, value in kinds[0].items() if key not in field}
