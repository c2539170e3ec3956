"""Commands about the place and about what is installed; those about studies are in `cli`.

Each takes the options of its command line and gives the exit code.
"""

import argparse
import json
import sys
import time
from functools import partial

from ablation.address import public
from ablation.backlog import progress
from ablation.include import Included, include
from ablation.ledger import Ledger
from ablation.plain import plain
from ablation.problems import StudyError, nearest
from ablation.profile import Profile
from ablation.provenance import now_ms
from ablation.request import InputError, glimpse, ledger_of, planned, profile_of
from ablation.study import AbsentError
from ablation.submission import Submission, find_submissions
from ablation.trainers import find_trainers, load_trainer
from ablation.why import span
from ablation.yamlfile import parse

__all__ = ["doctor", "keep", "logs", "queue", "schema", "stop", "submit", "trainers", "ui"]

_KEEP_EVERY_S = 30.0
_ENDS = {0: "complete", 1: "ended, some cell failed", 2: "refused", 130: "stopped"}


def doctor(options: argparse.Namespace) -> int:
    """Try every part of a place, and say what to mend; 1 where something is."""
    from ablation.doctor import diagnose

    code = 0
    for finding in diagnose(profile_of(options), trainer=options.trainer):
        print(plain(f"{'MEND' if finding.remedy else 'ok':4} {finding.part}: {finding.found}"))
        if finding.remedy:
            code = 1
            print(plain(f"     {finding.remedy}"), flush=True)
    return code


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
    submission, _ = bring(submission, Jobs.at(at), ledger.storage)
    print(f"{submission.id}: {', '.join(submission.studies)}")
    print(f"Ray: {public(at)}/#/jobs/{submission.job}")
    print(f"MLflow: {public(profile.mlflow(ledger.storage.local)[0])}", flush=True)
    if not options.follow:
        return 0
    return follow(submission, ledger.storage, partial(Jobs.at, at), _pass_on)


def _pass_on(text: str) -> None:
    print(plain(text), end="", file=sys.stderr, flush=True)


def logs(options: argparse.Namespace) -> int:
    """Print what the driver of a submission has said."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import dashboard_of

    profile = profile_of(options)
    submission = _found(options.name, profile)
    print(plain(Jobs.at(dashboard_of(profile)).logs(submission.job)), end="")
    return 0


def stop(options: argparse.Namespace) -> int:
    """Have a submission save and end."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import dashboard_of
    from ablation.submit import stop as end

    profile = profile_of(options)
    submission = _found(options.name, profile)
    if submission.over:
        raise InputError(f"{submission.id} has ended already, with {submission.code}.")
    end(submission, Jobs.at(dashboard_of(profile)), ledger_of(profile).storage)
    print(f"{submission.id} saves and ends. `ablation submit` goes on from there.")
    return 0


def queue(options: argparse.Namespace) -> int:
    """Show what was submitted and has not ended; what has lost its driver gets another one."""
    from ablation.executors.jobs import Jobs
    from ablation.submit import at_home, bring, dashboard_of

    profile = profile_of(options)
    ledger, jobs = ledger_of(profile), Jobs.at(dashboard_of(profile))
    for submission in find_submissions(ledger.storage):
        if submission.over:
            print(f"{submission.id}: {_ENDS.get(submission.code or 0, 'lost')}")
            continue
        submission, job = bring(at_home(submission, profile), jobs, ledger.storage)
        since = span((now_ms() - submission.submitted_ms) / 1000)
        state = job.state if job else "lost"
        print(plain(f"{submission.id}: {state}, {submission.by}, for {since}"))
        for study, text in zip(submission.studies, submission.texts, strict=True):
            print(plain(f"  {study}: {_progress(text, profile, ledger)}"))
    return 0


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
    return str(progress(asked, ledger))


def _found(name: str, profile: Profile) -> Submission:
    """The newest submission of that name, or with a study of that name."""
    every = find_submissions(ledger_of(profile).storage)
    found = [each for each in every if name in (each.id, *each.studies)]
    if not found:
        known = nearest(name, [label for each in every for label in (each.id, *each.studies)])
        raise InputError(f"{public(profile.storage)} holds no submission {name!r}.{known}")
    return found[-1]


def ui(options: argparse.Namespace) -> int:
    """Start MLflow's server on the embedded store."""
    from ablation.mlflow_server import TRACKING_ERRORS
    from ablation.serve import serve

    profile = profile_of(options)
    ledger = ledger_of(profile)
    uri, embedded = profile.mlflow(ledger.storage.local)
    if embedded is None:
        raise InputError(f"ui is for the embedded store; this profile's server is {public(uri)}.")
    if not (studies := ledger.studies()):
        raise InputError(f"{public(profile.storage)} holds no study to show. Run one first.")
    try:
        serve(uri, studies, port=options.port)
    except TRACKING_ERRORS as error:
        raise InputError(f"{uri} must be a store of this MLflow: {error}") from error


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of study files."""
    from ablation.schema import json_schema

    print(json.dumps(json_schema(load_trainer(options.trainer)), indent=2))
    return 0


def trainers(options: argparse.Namespace) -> int:
    """List the installed trainers."""
    for name in sorted(find_trainers()):
        trainer = load_trainer(name)
        print(f"{name} (result version {trainer.result_version})")
        for label, names in (
            ("stages", trainer.stages()),
            ("presets", trainer.presets()),
            ("metrics", trainer.metrics()),
        ):
            print(f"  {label}: {', '.join(names)}")
    return 0
