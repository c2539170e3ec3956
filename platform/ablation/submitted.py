"""A study as it was last run, kept in the ledger: its text, and where its data lay."""

import json
from collections.abc import Iterable, Mapping

from ablation.identity import NAME
from ablation.ledger import Ledger
from ablation.problems import Problem, StudyError
from ablation.study import Study
from ablation.yamlfile import parse

__all__ = ["check_names", "data_of", "keep", "text_of"]

_TEXT, _PLACE = "study.yaml", "place.json"


def keep(ledger: Ledger, name: str, *, text: str, data: Mapping[str, str]) -> None:
    """Keep a study's text, and the folders of its data sets by their names."""
    ledger.write_study(name, {_TEXT: text, _PLACE: json.dumps(dict(data))})


def text_of(ledger: Ledger, name: str) -> str | None:
    """The text of a study, None where the ledger holds none of that name."""
    return ledger.read_study(name, _TEXT) if NAME.fullmatch(name) else None


def check_names(ledger: Ledger, studies: Iterable[Study]) -> None:
    """See that no study has the name of another trainer's: texts and runs would be mixed.

    Raises StudyError where one has.
    """
    problems = []
    for study in studies:
        theirs = _trainer_of(ledger, study.name)
        if theirs not in (None, study.trainer):
            sentence = (
                f"name must not be that of another trainer's study in {ledger.storage.uri}, "
                f"got {study.name!r}, which is of {theirs}. Choose another name or storage."
            )
            problems.append(study.document.problem(sentence, "name"))
    if problems:
        raise StudyError(problems)


def _trainer_of(ledger: Ledger, name: str) -> str | None:
    """The trainer that a study names; None where there is none, or it cannot be read any more."""
    try:
        content = parse(text_of(ledger, name) or "", _TEXT).content
    except StudyError:
        return None
    return str(content["trainer"]) if isinstance(content, dict) and "trainer" in content else None


def data_of(ledger: Ledger, name: str) -> dict[str, str]:
    """Where the data sets of a study lay, by their names.

    Raises StudyError where that was damaged.
    """
    try:
        data = json.loads(ledger.read_study(name, _PLACE) or "{}")
    except ValueError:
        data = None
    if isinstance(data, dict) and all(isinstance(at, str) for at in data.values()):
        return data
    sentence = "must be folders by name, as JSON. Run the study's file with --data, or mend it."
    raise StudyError([Problem(f"{ledger.storage.uri}/studies/{name}/{_PLACE}", 0, sentence)])
