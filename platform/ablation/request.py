"""What a command line asks for: the place, its ledger, and its studies with their plans."""

import argparse
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ablation.cells import Standing
from ablation.feasibility import Cache
from ablation.include import Included, include
from ablation.ledger import Ledger
from ablation.plan import Plan, plan, reads, sketch
from ablation.problems import Problem, StudyError
from ablation.profile import Profile, load_profile, parse_data
from ablation.protocol import Trainer
from ablation.study import AbsentError, Study, study_of
from ablation.submitted import fingerprints_of
from ablation.supervise import is_begun
from ablation.trainers import load_trainer

__all__ = ["InputError", "glimpse", "ledger_of", "planned", "planned_one", "profile_of"]

_log = logging.getLogger(__name__)


class InputError(Exception):
    """The input was wrong, in words for people."""


def profile_of(options: argparse.Namespace) -> Profile:
    """The profile, under the environment's and the flags' values.

    Raises StudyError with every problem at its place.
    """
    flags = {
        "storage": options.storage,
        "data": parse_data(options.data, source="--data"),
        "workers": getattr(options, "workers", None),
        "priority": getattr(options, "priority", None),
        "allow_download": options.allow_download or None,
    }
    return load_profile(options.on or _usual_file(), environment=os.environ, flags=flags)


def _usual_file() -> Path | None:
    """The profile of whoever names none: ABLATION_PROFILE, or that of the configuration folder."""
    if named := os.environ.get("ABLATION_PROFILE"):
        return Path(named)
    with suppress(OSError, RuntimeError):
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        file = folder / "ablation" / "profile.yaml"
        return file if file.exists() else None
    return None  # of a home that is not known, or that belongs to somebody else


def ledger_of(profile: Profile) -> Ledger:
    """The profile's ledger, or the place for one.

    Raises StorageError where it cannot be read, or is not there any more.
    """
    ledger = Ledger.open(profile.storage)
    ledger.check(empty=not is_begun())
    return ledger


def planned(
    included: Included, profile: Profile, *, before: Ledger | None = None
) -> list[tuple[Plan, Trainer]]:
    """The plans of studies, each with its trainer.

    `before` is asked for the fingerprints of data that are not at hand, as a study's last run found
    them: that is enough to look at what came of it.
    Raises StudyError with the problems of all; AbsentError where only data are not at hand.
    """
    workers = profile.layout.least
    problems, wrong = list(included.problems), bool(included.problems)
    studies: list[Study] = []
    cache: Cache = {}
    for document in included.documents:
        try:
            studies.append(study_of(document, place=profile.place, workers=workers, cache=cache))
        except AbsentError as error:
            if (study := _recalled(error, before, cache)) is not None:
                studies.append(study)
            else:
                studies += error.studies
                problems += error.problems
        except StudyError as error:
            wrong = True
            problems += error.problems
    twins = [*_twins(studies)]
    if problems and not wrong and not twins:
        raise AbsentError(studies, problems)
    if problems or twins:
        raise StudyError([*problems, *twins])
    found = [(study, load_trainer(study.trainer)) for study in studies]
    return [(plan(study, by, profile.place, workers=workers), by) for study, by in found]


def _recalled(error: AbsentError, before: Ledger | None, cache: Cache) -> Study | None:
    """The study that lacks data, with what its last run found of them; None where it found less."""
    if before is None:
        return None
    (study,) = error.studies
    now = {name: found for (trainer, name), found in cache.items() if trainer == study.trainer}
    then = fingerprints_of(before, study.name)
    if not reads(study, load_trainer(study.trainer)) <= {**then, **now}.keys():
        return None
    for problem in error.problems:
        _log.warning("%s What the last run of %s found there counts.", problem, study.name)
    return replace(study, fingerprints={**then, **now})


def _twins(studies: Sequence[Study]) -> Iterator[Problem]:
    """A problem for each study that has an earlier one's name: the ledger keeps one of each."""
    first: dict[str, Study] = {}
    for study in studies:
        if (twin := first.setdefault(study.name, study)) is not study:
            sentence = f"name must differ from that of {twin.document.file}, got {study.name!r}."
            yield study.document.problem(sentence, "name")


def glimpse(
    included: Included, profile: Profile
) -> tuple[list[Plan], Mapping[str, Standing] | None, AbsentError | None]:
    """The plans of studies and how their stages stand; or sketches, and which data are not at hand.

    Raises StudyError where something else is wrong.
    """
    try:
        ledger = ledger_of(profile)
        plans = [found for found, _ in planned(included, profile, before=ledger)]
    except AbsentError as error:
        return [sketch(study, load_trainer(study.trainer)) for study in error.studies], None, error
    digests = [digest for found in plans for digest in found.stages]
    return plans, ledger.standings(dict.fromkeys(digests)), None


def planned_one(
    file: Path, profile: Profile, *, before: Ledger | None = None
) -> tuple[Plan, Trainer]:
    """The plan of a file that is, or includes, one study, as `planned`.

    Raises StudyError where it includes several.
    """
    plans = planned(include(file), profile, before=before)
    if len(plans) > 1:
        files = ", ".join(plan.study.document.file for plan, _ in plans)
        sentence = f"this is asked of one study. Name the file of one: {files}."
        raise StudyError([Problem(str(file), 0, sentence)])
    return plans[0]
