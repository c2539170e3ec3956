"""Studies sent to a cluster, and brought to their ends there: by Ray's jobs, again and again.

A driver supervises itself (`run --supervise`), so it is submitted again only where it could not:
where its node or the head was lost, or it gave up what was lost.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ablation.address import has_keys
from ablation.executors.jobs import Job, Jobs
from ablation.layout import LostPlaceError, PlaceError
from ablation.problems import Problem, StudyError
from ablation.profile import Profile
from ablation.provenance import now_ms, user
from ablation.storage import Storage, StorageError
from ablation.submission import Submission, find_submissions, new_submission, write_submission
from ablation.yamlfile import Document

__all__ = ["bring", "dashboard_of", "follow", "keep", "packed", "sent", "stop"]

_FINAL = (0, 1, 2)
"""What a driver ends with that another one would end with too."""

_DASHBOARD_PORT = 8265
_LOOK_EVERY_S = 5.0
_STOP_BESIDES_S = 35.0
"""What a driver needs beside the grace of its cells, to tell MLflow and to write its tables."""

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
    study = "0.yaml"
    if len(files) > 1:
        study, everything = "studies.yaml", {"name": "submitted", "include": [*files]}
        files[study] = json.dumps(everything)
    files["profile.yaml"] = sent(profile)
    return new_submission(
        names,
        command=("python", "-m", "ablation", "run", study, "--supervise", "--on", "profile.yaml"),
        files=files,
        grace_s=profile.grace_s,
        by=user(),
        now_ms=now_ms(),
    )


def sent(profile: Profile) -> str:
    """A profile as those on the cluster find it, in a file.

    Raises StudyError where the place is not one for a cluster.
    """
    _check(profile)
    plain = {
        part.name: value
        for part in fields(Profile)
        if part.name not in _HERE and (value := getattr(profile, part.name)) is not None
    }
    return json.dumps(plain | {"address": "auto"}, indent=1)


def _check(profile: Profile) -> None:
    problems = [
        Problem(
            "the profile",
            0,
            f"{name} must hold no keys, for everybody on the cluster could read them. Set them in "
            f"the environment of its nodes.",
        )
        for name in ("storage", "tracking")
        if has_keys(getattr(profile, name) or "")
    ]
    if profile.tracking is None and "://" in profile.storage:
        sentence = "tracking must name an MLflow server, for a job has no folder that stays."
        problems.append(Problem("the profile", 0, sentence))
    if problems:
        raise StudyError(problems)


def bring(submission: Submission, jobs: Jobs, storage: Storage) -> tuple[Submission, Job | None]:
    """See that a submission has a driver, or that it has ended; what is kept of it, and its job."""
    found = jobs.look(submission.job)
    if found is not None and not found.over:
        return submission, found
    ended = found.code if found is not None and found.code in _FINAL else None
    if ended is None and (submission.stopped or (found and found.state == "stopped")):
        ended = 130
    if ended is not None:
        submission = replace(submission, code=ended)
        write_submission(storage, submission)
        return submission, found
    if found is not None:
        submission = submission.again()
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
                "RAY_JOB_STOP_WAIT_TIME_S": f"{submission.grace_s + _STOP_BESIDES_S:.0f}",
            },
        )
    return submission, jobs.look(submission.job)


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
        except (PlaceError, LostPlaceError) as error:
            if not lost:  # a head that begins again is away for a while
                say(f"{error}\n")
            lost = str(error)
        if not submission.over:
            time.sleep(pause_s)
    assert submission.code is not None
    return submission.code


def keep(
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
                if not submission.over:
                    now, _ = bring(submission, jobs, storage)
                    if now.job != submission.job:
                        say(f"{submission.job} was lost: {now.job} goes on.")
                    if now.over:
                        say(f"{submission.id} has ended with {now.code}.")
        except (PlaceError, LostPlaceError, StorageError) as error:
            trouble = str(error)
        if trouble and not before:
            say(trouble)
        before = trouble
        pause()


def stop(submission: Submission, jobs: Jobs, storage: Storage) -> Submission:
    """Have a submission's driver save and end, and submit it no more."""
    submission = replace(submission, stopped=True)
    write_submission(storage, submission)
    found = jobs.look(submission.job)
    if found is not None and not found.over:
        jobs.stop(submission.job)
    return submission
