"""Commands about what was submitted to a cluster, and about cells wherever they run.

Each takes the options of its command line and gives the exit code.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

from ablation.address import public
from ablation.backlog import progress
from ablation.cells import GO_ON, Standing
from ablation.include import Included, include
from ablation.layout import LostPlaceError, PlaceError
from ablation.ledger import Ledger
from ablation.plain import plain
from ablation.plan import Plan
from ablation.problems import StudyError, nearest
from ablation.profile import Profile
from ablation.provenance import now_ms
from ablation.request import InputError, glimpse, ledger_of, planned, profile_of
from ablation.stops import stop_cells, want_all
from ablation.storage import StorageError
from ablation.study import AbsentError
from ablation.submission import Submission, find_submissions, write_submission
from ablation.submitted import text_of
from ablation.why import span
from ablation.yamlfile import parse

__all__ = ["keep", "logs", "queue", "stop", "submit"]

_KEEP_EVERY_S = 30.0
_LONGEST_S = 100 * 365 * 24 * 3600.0
"""Whoever writes the storage may have a study end after all calendars."""
_ENDS = {0: "complete", 1: "ended, some cell failed or was stopped", 2: "refused", 130: "stopped"}


def submit(options: argparse.Namespace) -> int:
    """Send studies to a cluster; with --follow, show what comes of them, and end as they do."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import bring, dashboard_of, follow, packed

    profile = profile_of(options)
    included = [include(file) for file in options.study]
    documents = tuple({d.file: d for each in included for d in each.documents}.values())
    problems = tuple(problem for each in included for problem in each.problems)
    whole = Included(documents=documents, problems=problems)
    names = [plan.study.name for plan in glimpse(whole, profile)[0]]
    submission, at = packed(names, documents, profile), dashboard_of(profile)
    ledger = ledger_of(profile)
    ledger.check_writable()
    jobs = Jobs.at(at)
    for name in names:
        want_all(ledger, name)
    write_submission(ledger.storage, submission)  # from here on it is brought to its end
    print(f"{submission.id}: {', '.join(submission.studies)}")
    print(f"Ray: {public(at)}/#/jobs/{submission.job}")
    print(f"MLflow: {public(profile.mlflow(ledger.storage.local)[0])}", flush=True)
    try:
        if options.follow:
            return follow(submission, ledger.storage, partial(Jobs.at, at), _pass_on)
        bring(submission, jobs, ledger.storage)
    except (LostPlaceError, StorageError) as error:
        _tell(f"{error} {submission.id} is kept: `ablation queue` gives it a driver, not `submit`.")
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        _tell(f"{submission.id} goes on without you. `ablation stop {submission.id}` ends it.")
        return 130
    return 0


def _pass_on(text: str) -> None:
    print(plain(text), end="", file=sys.stderr, flush=True)


def logs(options: argparse.Namespace) -> int:
    """Print what the driver of a submission has said, of all or of a cell."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import dashboard_of

    profile = profile_of(options)
    submission = _found(options.name, profile)[-1]
    said = plain(Jobs.at(dashboard_of(profile)).logs(submission.job))
    if not options.cell:
        print(said, end="")
        return 0
    asked, _ = _asked(options.name, profile)
    titles = "|".join(re.escape(plain(cell.title)) for cell in asked.called(options.cell))
    study = submission.studies[0]
    for line in said.splitlines(keepends=True):
        if line.removesuffix(":\n") in submission.studies:  # where another of several begins
            study = line.removesuffix(":\n")
        elif study == asked.study.name and re.match(rf"(\[\d+/\d+\] )?({titles}): ", line):
            print(line, end="")
    return 0


def stop(options: argparse.Namespace) -> int:
    """Have a submission, a study, or a cell of one, save and end."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import dashboard_of
    from ablation.submit import stop as end

    profile = profile_of(options)
    if options.cell:
        return _stop_cells(options, profile)
    found = _found(options.name, profile)
    if found[-1].over:
        raise InputError(f"{found[-1].id} has ended already, with {found[-1].code}.")
    if any(len(each.studies) > 1 and each.id != options.name for each in found):
        return _stop_cells(options, profile)  # and not what was submitted with the study
    names = ", ".join(each.id for each in found)
    connect, storage = partial(Jobs.at, dashboard_of(profile)), ledger_of(profile).storage
    try:
        end(found, connect, storage)
    except (PlaceError, LostPlaceError) as error:
        _tell(f"{error} It is kept that {names} must end: no other driver begins.")
        return os.EX_TEMPFAIL if isinstance(error, LostPlaceError) else 2
    print(f"{names}: saves and ends. `ablation submit` goes on from there.")
    return 0


def _stop_cells(options: argparse.Namespace, profile: Profile) -> int:
    """Mark a cell, or all of a study, so that every driver of it has them save and end."""
    ledger = ledger_of(profile)
    asked, standings = _asked(options.name, profile)
    study = asked.study.name
    cells = asked.called(options.cell) if options.cell else asked.cells
    titles = [cell.title for cell in cells if not (standings and cell.idle(standings))]
    if not titles:
        what = f"{options.cell} of {study}" if options.cell else study
        raise InputError(f"{what} must not have ended to be stopped, and has.")
    stop_cells(ledger, study, titles)
    for title in titles:
        print(plain(f"{title} of {study} saves and ends where it is at work; {GO_ON}."))
    return 0


def queue(options: argparse.Namespace) -> int:
    """Show what was submitted, in the order of its turns; what has lost its driver gets another.

    Where Ray's dashboard does not answer, it shows what the storage tells.
    """
    from ablation.executors.jobs import Jobs
    from ablation.submit import at_home, bring, dashboard_of

    profile = profile_of(options)
    ledger, jobs, code = ledger_of(profile), None, 0
    every = find_submissions(ledger.storage)
    try:
        jobs = Jobs.at(dashboard_of(profile))
    except (StudyError, PlaceError) as error:
        code = _unasked(error)
    going = (each for each in every if not each.over)
    for turn, submission in enumerate(sorted(going, key=lambda each: -each.priority), 1):
        state = "asked to stop" if submission.stopped else "submitted"
        if jobs is not None:
            try:
                submission, job = bring(at_home(submission, profile), jobs, ledger.storage)
                state = job.state if job else "lost"
            except LostPlaceError as error:
                jobs, code = None, _unasked(error)
        since = span((now_ms() - submission.submitted_ms) / 1000)
        by = f"priority {submission.priority}, submitted by {submission.by} {since} ago"
        print(plain(f"{turn}. {submission.id}: {state}, {by}"))
        for study, text in zip(submission.studies, submission.texts, strict=True):
            print(plain(f"   {study}: {_progress(text, profile, ledger)}"))
    for submission in (each for each in every if each.over):
        print(f"{submission.id}: {_ENDS.get(submission.code or 0, 'lost')}")
    return code


def _unasked(error: Exception) -> int:
    """Say that the cluster could not be asked; the exit code."""
    _tell(f"{error} So this is what the storage tells; what has lost its driver gets no other.")
    return os.EX_TEMPFAIL if isinstance(error, LostPlaceError) else 2


def keep(options: argparse.Namespace) -> int:
    """See for ever that what was submitted goes on: for a service on a stable machine."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import dashboard_of
    from ablation.submit import keep as keep_all

    profile = profile_of(options)
    connect, storage = partial(Jobs.at, dashboard_of(profile)), ledger_of(profile).storage
    keep_all(profile, storage, connect, _tell, pause=partial(time.sleep, _KEEP_EVERY_S))
    return 0


def _tell(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def _progress(text: str, profile: Profile, ledger: Ledger) -> str:
    """How far a study is, or why that cannot be said."""
    try:
        ((asked, _),) = planned(
            Included(documents=(parse(text, "study.yaml"),)), profile, before=ledger
        )
    except AbsentError:
        return "not begun"
    except StudyError as error:
        return f"cannot be read. {error.problems[0]}"
    found = progress(asked, ledger)
    if not 0 < (found.left_s or 0) < _LONGEST_S:
        return str(found)
    end = datetime.fromtimestamp(now_ms() / 1000, UTC) + timedelta(seconds=found.left_s or 0)
    return f"{found} (to {end:%Y-%m-%d %H:%M} UTC)"


def _asked(name: str, profile: Profile) -> tuple[Plan, Mapping[str, Standing] | None]:
    """The plan, or a sketch, of a study that was submitted or run, and how its stages stand.

    `name` is the study's, or that of a submission of one study.
    """
    ledger = ledger_of(profile)
    every = find_submissions(ledger.storage)
    alone = (each.studies[0] for each in every if each.id == name and len(each.studies) == 1)
    study = next(alone, name)
    going = [dict(zip(each.studies, each.texts, strict=True)) for each in every if not each.over]
    texts = [text_of(ledger, study), *(texts.get(study) for texts in going)]
    if not (known := [text for text in texts if text is not None]):
        near = nearest(name, ledger.studies())
        raise InputError(f"{public(profile.storage)} holds no study {name!r}.{near}")
    document = parse(known[-1], f"{study}.yaml")
    plans, standings, _ = glimpse(Included(documents=(document,)), profile)
    return plans[0], standings


def _found(name: str, profile: Profile) -> list[Submission]:
    """The submissions so named, or with a study so named, that have not ended; else the newest."""
    every = find_submissions(ledger_of(profile).storage)
    found = [each for each in every if name in (each.id, *each.studies)]
    if not found:
        known = nearest(name, [label for each in every for label in (each.id, *each.studies)])
        raise InputError(f"{public(profile.storage)} holds no submission {name!r}.{known}")
    return [each for each in found if not each.over] or found[-1:]
