"""The schema that editors use agrees with the reader."""

import json
from typing import Any

import jsonschema
import pytest

from ablation.schema import json_schema
from ablation.toy import ToyTrainer

STUDY: dict[str, Any] = {
    "name": "toys",
    "trainer": "toy",
    "preset": "quick",
    "seeds": [0, 1],
    "evaluate": ["score", {"probe": {"steps": 3}}],
    "metric": "score/accuracy",
    "baseline": "a",
    "references": ["noise", {"noise": {"scale": 2}}],
    "set": {"mask.prefer": "easy", "mask": {"ratio": 1}},
    "rows": {"a": {"rate": 1}, "b": None},
    "published": {
        "a": 1,
        "b": {"value": 2, "status": "author"},
        "c": {"score/accuracy": 3, "probe/accuracy": {"value": 4, "note": "of their own"}},
    },
    "printed": {"theirs": {"value": 1.5}},
    "claims": {
        "faster": {"better": "b", "than": "a"},
        "slower": {"better": "a", "than": "b", "metric": "train/loss", "says": "so"},
    },
}
GRID = {"x": {"a": {"rate": 1}, "b": {"mask.ratio": 0.5}}}


def errors(study: dict[str, Any]) -> list[Any]:
    schema = json.loads(json.dumps(json_schema(ToyTrainer())))
    jsonschema.Draft202012Validator.check_schema(schema)
    return list(jsonschema.Draft202012Validator(schema).iter_errors(study))


def test_json_schema__admits_a_study() -> None:
    assert errors(STUDY) == []
    without = {key: value for key, value in STUDY.items() if key != "rows"}
    assert errors({**without, "grid": GRID, "layout": {"down": "x", "across": "y"}}) == []


def test_json_schema__admits_a_file_that_includes_studies() -> None:
    several = {"name": "all", "question": "Why?", "include": ["a.yaml", "b.yaml"]}
    assert errors(several) == []
    assert errors({**several, "include": []})
    assert errors({**several, "trainer": "toy"})
    assert errors({**STUDY, "include": ["a.yaml"]})
    assert errors({"include": ["a.yaml"]})


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": "other"},
        {"preset": "slow"},
        {"metric": "score/x"},
        {"seeds": []},
        {"seeds": ["a"]},
        {"evaluate": ["train"]},
        {"evaluate": [{"probe": {"stps": 3}}]},
        {"references": ["score"]},
        {"references": [{"noise": {"scael": 2}}]},
        {"references": [{"noise": {}, "other": {}}]},
        {"set": {"mask.rato": 1}},
        {"set": {"mask.prefer": "soft"}},
        {"rows": {"a": {"rate": "fast"}}},
        {"rows": {}},
        {"rows": None},
        {"grid": GRID},
        {"seed": 1},
        {"published": {"a": {"value": 1, "status": "rumour"}}},
        {"published": {"a": {"score/x": 1}}},
        {"printed": {"a": {"score/accuracy": {"status": "author"}}}},
        {"claims": {"a": {"better": "b"}}},
        {"claims": {"a": {"better": "b", "than": "a", "metric": "score/x"}}},
    ],
)
def test_json_schema__refuses(change: dict[str, Any]) -> None:
    assert errors({**STUDY, **change})


def test_json_schema__requires_what_a_study_needs() -> None:
    for key in ("name", "trainer", "preset", "seeds", "metric", "baseline", "rows"):
        assert errors({name: value for name, value in STUDY.items() if name != key})
