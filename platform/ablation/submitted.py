"""A study as it was last run, kept in the ledger: its text, where its data lay, what they were."""

import json
from collections.abc import Iterable, Mapping

from ablation.identity import NAME
from ablation.ledger import Ledger
from ablation.problems import Problem, StudyError
from ablation.study import Study
from ablation.typed import loads
from ablation.yamlfile import parse

__all__ = ["check_names", "data_of", "fingerprints_of", "keep", "text_of"]

_TEXT, _PLACE, _SEEN = "study.yaml", "place.json", "fingerprints.json"


def keep(
    ledger: Ledger,
    name: str,
    *,
    text: str,
    data: Mapping[str, str],
    fingerprints: Mapping[str, str],
) -> None:
    """Keep a study's text, and the folders and fingerprints of its data sets by their names."""
    texts = {_TEXT: text, _PLACE: json.dumps(dict(data)), _SEEN: json.dumps(dict(fingerprints))}
    ledger.write_study(name, texts)


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
    return _read(ledger, name, _PLACE, "folders", "Run the study's file with --data, or mend it.")


def fingerprints_of(ledger: Ledger, name: str) -> dict[str, str]:
    """Fingerprints of the data sets of a study when it was last run, by their names.

    Raises StudyError where that was damaged.
    """
    return _read(ledger, name, _SEEN, "fingerprints", "Run the study again where its data are.")


def _read(ledger: Ledger, name: str, file: str, what: str, remedy: str) -> dict[str, str]:
    try:
        found = loads(ledger.read_study(name, file) or "{}")
    except ValueError:
        found = None
    if isinstance(found, dict) and all(isinstance(text, str) for text in found.values()):
        return found
    sentence = f"must be {what} by name, as JSON. {remedy}"
    raise StudyError([Problem(f"{ledger.storage.uri}/studies/{name}/{file}", 0, sentence)])
