"""Studies sent to a cluster, and brought to their ends there: by Ray's jobs, again and again.

A driver supervises itself (`run --supervise`), so it is submitted again only where it could not:
where its node or the head was lost, or it gave up what was lost.
"""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from ablation.address import has_keys
from ablation.executors.jobs import Job, Jobs
from ablation.layout import LostPlaceError, PlaceError
from ablation.problems import Problem, StudyError
from ablation.profile import Profile
from ablation.provenance import now_ms, user
from ablation.storage import Storage, StorageError
from ablation.submission import (
    Submission,
    ask_to_stop,
    find_submissions,
    new_submission,
    reread,
    write_submission,
)
from ablation.supervise import AGAIN, BEGUN, LOST
from ablation.typed import loads
from ablation.yamlfile import Document

__all__ = ["at_home", "bring", "dashboard_of", "follow", "keep", "packed", "sent", "stop"]

_FINAL = (0, 1, 2)
"""What a driver ends with that another one would end with too."""

_DASHBOARD_PORT = 8265
_LOOK_EVERY_S = 5.0
_STOP_BESIDES_S = 35.0
"""What a driver needs beside the grace of its cells, to tell MLflow and to write its tables."""

_PROFILE = "profile.yaml"
_THEIRS = (
    *("data", "workers", "cpus_per_worker", "gpus_per_worker", "concurrency", "loaders"),
    *("checkpoint_every_s", "max_failures", "patience_s", "grace_s", "priority"),
)
_HERE = ("address", "dashboard")
"""What a profile says for those who are not on the cluster."""


def dashboard_of(profile: Profile) -> str:
    """The address of Ray's dashboard: the profile's, or the usual one on its head.

    Raises StudyError where the profile names no cluster.
    """
    if profile.dashboard:
        return profile.dashboard
    host = profile.address.rpartition(":")[0]
    if not host:
        sentence = "dashboard must be that of a cluster, as http://HOST:8265, got none."
        raise StudyError([Problem("the profile", 0, sentence)])
    return f"http://{host}:{_DASHBOARD_PORT}"


def packed(names: Sequence[str], documents: Sequence[Document], profile: Profile) -> Submission:
    """Studies and their place as a driver on the cluster finds them.

    Raises StudyError where the place is not one for a cluster.
    """
    files = {f"{number}.yaml": each.text for number, each in enumerate(documents)}
    if len(files) > 1:
        files["studies.yaml"] = json.dumps({"name": "submitted", "include": [*files]})
    files[_PROFILE] = sent(profile)
    return new_submission(
        names,
        files=files,
        grace_s=profile.grace_s,
        by=user(),
        now_ms=now_ms(),
    )


def at_home(submission: Submission, profile: Profile) -> Submission:
    """A submission that was found, at the place of `profile`.

    Of the place that the storage says, only what shares out a cluster counts, and where data lie:
    whoever may write there must not have keys sent to another server, nor its answers kept.
    Raises StudyError where the profile is not one for a cluster.
    """
    try:
        kept = loads(submission.files[_PROFILE])
    except ValueError:
        kept = None
    theirs = {n: kept[n] for n in _THEIRS if n in kept} if isinstance(kept, dict) else {}
    usual = replace(profile, **{name: getattr(Profile(), name) for name in _THEIRS})
    return replace(submission, files={**submission.files, _PROFILE: sent(usual, theirs)})


def sent(profile: Profile, theirs: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A profile's file for those on the cluster, with what counts more than the profile.

    Folders are absolute in it, for a driver has a folder of its own.
    Raises StudyError where the place is not one for a cluster.
    """
    _check(profile)
    if "://" not in profile.storage:
        profile = replace(profile, storage=str(Path(profile.storage).absolute()))
    data = {name: str(folder) for name, folder in profile.place.data.items()}
    profile = replace(profile, data=data)
    plain = {
        part.name: value
        for part in fields(Profile)
        if part.name not in _HERE and (value := getattr(profile, part.name)) is not None
    }
    return json.dumps({**plain, "address": "auto", **theirs}, indent=1)


def _check(profile: Profile) -> None:
    problems = [
        Problem(
            "the profile",
            0,
            f"{name} must hold no keys, for everybody on the cluster could read them. Set them in "
            f"the environment of its nodes.",
        )
        for name in ("storage", "tracking", "notice")
        if has_keys(getattr(profile, name) or "")
    ]
    if profile.tracking is None and "://" in profile.storage:
        sentence = "tracking must name an MLflow server, for a job has no folder that stays."
        problems.append(Problem("the profile", 0, sentence))
    if problems:
        raise StudyError(problems)


def bring(submission: Submission, jobs: Jobs, storage: Storage) -> tuple[Submission, Job | None]:
    """See that a submission has a driver, or that it has ended; what is kept of it, and its job."""
    submission = reread(storage, submission)
    found = jobs.look(submission.job)
    if submission.over:
        return submission, found
    if found is not None and not found.over:
        return _heeded(submission, jobs), found
    ended = found.code if found is not None and found.code in _FINAL else None
    if ended is None and (submission.stopped or (found and found.state == "stopped")):
        ended = 130
    if ended is not None:
        submission = replace(submission, code=ended)
        write_submission(storage, submission)
        return submission, found
    session = jobs.session()
    if found is not None or submission.session not in ("", session):
        submission = submission.again()
    submission = replace(submission, session=session)
    write_submission(storage, submission)
    with TemporaryDirectory(prefix="ablation-") as folder:
        for name, text in submission.files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        jobs.submit(
            submission.job,
            shlex.join(submission.command),
            folder=Path(folder),
            environment={
                "PYTHONUNBUFFERED": "1",
                AGAIN: "1",
                BEGUN: _PROFILE,  # for the submission lies in the storage already
                **({LOST: "1"} if submission.jobs > 1 else {}),
                "RAY_JOB_STOP_WAIT_TIME_S": f"{submission.grace_s + _STOP_BESIDES_S:.0f}",
            },
        )
    return _heeded(reread(storage, submission), jobs), jobs.look(submission.job)


def _heeded(submission: Submission, jobs: Jobs) -> Submission:
    """The same, whose driver has been asked to end where that is wanted; asked twice, it is one."""
    if submission.stopped:
        jobs.stop(submission.job)
    return submission


def follow(
    submission: Submission,
    storage: Storage,
    connect: Callable[[], Jobs],
    say: Callable[[str], None],
    *,
    pause_s: float = _LOOK_EVERY_S,
) -> int:
    """Pass on what a submission's drivers say, and submit it again where one was lost; its code."""
    lost = ""
    while not submission.over:
        try:
            jobs = connect()
            submission, _ = bring(submission, jobs, storage)
            if not submission.over:
                jobs.follow(submission.job, say)
            lost = ""
        except (PlaceError, LostPlaceError, StorageError) as error:
            if not lost:  # a head that begins again is away for a while
                say(f"{error}\n")
            lost = str(error)
        if not submission.over:
            time.sleep(pause_s)
    assert submission.code is not None
    return submission.code


def keep(
    profile: Profile,
    storage: Storage,
    connect: Callable[[], Jobs],
    say: Callable[[str], None],
    *,
    pause: Callable[[], None],
) -> None:
    """See for ever that all submissions have drivers; it ends when `pause` raises."""
    before = ""
    while True:
        trouble = ""
        try:
            jobs = connect()
            for submission in find_submissions(storage):
                try:
                    _keep_one(submission, profile, jobs, storage, say)
                except (LostPlaceError, StorageError) as error:  # of which others may know nothing
                    trouble = str(error)
        except (PlaceError, StorageError) as error:
            trouble = str(error)
        if trouble and not before:
            say(trouble)
        before = trouble
        pause()


def _keep_one(
    submission: Submission,
    profile: Profile,
    jobs: Jobs,
    storage: Storage,
    say: Callable[[str], None],
) -> None:
    """See that a submission has a driver, and say what has become of it."""
    if submission.over:
        return
    now, _ = bring(at_home(submission, profile), jobs, storage)
    if now.job != submission.job:
        say(f"{submission.job} was lost: {now.job} goes on.")
    if now.over:
        say(f"{submission.id} has ended with {now.code}.")


def stop(
    submissions: Sequence[Submission], connect: Callable[[], Jobs], storage: Storage
) -> list[Submission]:
    """Have the drivers of submissions save and end, and submit these no more.

    That is kept also where the cluster cannot be told, which raises PlaceError or LostPlaceError.
    """
    for submission in submissions:
        ask_to_stop(storage, submission)
    # Whoever has written down another driver is read here, and whoever does so now reads the above.
    now, jobs = [reread(storage, submission) for submission in submissions], connect()
    for submission in now:
        found = jobs.look(submission.job)
        if found is not None and not found.over:
            jobs.stop(submission.job)
    return now
