"""What was submitted to a cluster, kept in the ledger's storage until it has ended.

Ray forgets its jobs with its head. Here it stands which studies are to be brought to their ends and
with what driver, so that whoever looks can submit them again. Every submission is one small file.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from ablation.identity import NAME
from ablation.storage import Storage
from ablation.typed import Count, Moment, loads, typed

__all__ = [
    "Submission",
    "ask_to_stop",
    "find_submissions",
    "new_submission",
    "reread",
    "write_submission",
]

_FOLDER, _STOP = "submissions", ".stop"


def _named(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("it must be a study's name")
    return text


def _encodable(text: str) -> str:
    text.encode()  # JSON may hold halves of characters, of which no file can be made
    return text


_Id: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*-[0-9a-f]{8}$")]
_Name: TypeAlias = Annotated[str, AfterValidator(_named)]
_Text: TypeAlias = Annotated[str, AfterValidator(_encodable)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Studies that were submitted together, by their names.

    A driver works in a folder of `files`: the studies `0.yaml` and so on, where there are several
    `studies.yaml`, which includes them, and `profile.yaml`. `jobs` counts the drivers so far.
    Times are milliseconds since 1970 (UTC).
    """

    id: _Id
    studies: Annotated[tuple[_Name, ...], Field(min_length=1)]
    files: Mapping[str, _Text]
    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    by: str
    submitted_ms: Moment
    jobs: Count = 1
    session: str = ""
    """The cluster's, in which the present driver was submitted: a head that begins again may have
    forgotten it, and has another session."""
    stopped: bool = False
    """Whether somebody asked for its end, which a file of its own says: whoever writes down another
    driver in the same moment does not undo it."""
    code: Annotated[int, Field(ge=-255, le=255)] | None = None
    """The exit code that it ended with."""

    @property
    def job(self) -> str:
        """What Ray calls its present driver."""
        return f"{self.id}-{self.jobs}"

    @property
    def command(self) -> tuple[str, ...]:
        """What a driver runs. It is not kept: a storage must not say what the cluster executes."""
        study = "0.yaml" if len(self.studies) == 1 else "studies.yaml"
        return ("python", "-m", "ablation", "run", study, "--supervise", "--on", "profile.yaml")

    @property
    def texts(self) -> list[str]:
        """The studies' files, in their order."""
        return [self.files[f"{number}.yaml"] for number in range(len(self.studies))]

    @property
    def priority(self) -> int:
        """That of its profile; 0 where that cannot be read."""
        try:
            found = loads(self.files["profile.yaml"])["priority"]
        except (KeyError, TypeError, ValueError):
            return 0
        return found if isinstance(found, int) else 0

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.code is not None

    def again(self) -> "Submission":
        """The same with another driver."""
        return replace(self, jobs=self.jobs + 1)


def new_submission(
    studies: Sequence[str],
    *,
    files: Mapping[str, str],
    grace_s: float,
    by: str,
    now_ms: int,
) -> Submission:
    """A submission with a name of its own, which begins with that of its first study."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", studies[0])[:40]
    return Submission(
        id=f"{stem}-{secrets.token_hex(4)}",
        studies=tuple(studies),
        files=files,
        grace_s=grace_s,
        by=by,
        submitted_ms=now_ms,
    )


def write_submission(storage: Storage, submission: Submission) -> None:
    """Keep how a submission stands; raises StorageError where the storage refuses."""
    content = {name: part for name, part in asdict(submission).items() if name != "stopped"}
    storage.write(f"{_FOLDER}/{_file(submission)}", json.dumps(content, indent=1).encode())


def ask_to_stop(storage: Storage, submission: Submission) -> None:
    """Keep that a submission is to end; raises StorageError where the storage refuses."""
    storage.write(f"{_FOLDER}/{submission.id}{_STOP}", b"Asked to stop.\n")


def reread(storage: Storage, submission: Submission) -> Submission:
    """The same with what others have made of it since: its driver, a stop, its end.

    Raises StorageError where the storage refuses.
    """
    kept = _parse(storage.read(f"{_FOLDER}/{_file(submission)}"), _file(submission))
    if kept is None:
        return submission
    return replace(
        submission,
        jobs=kept.jobs,
        session=kept.session,
        stopped=storage.read(f"{_FOLDER}/{submission.id}{_STOP}") is not None,
        code=kept.code,
    )


def find_submissions(storage: Storage) -> list[Submission]:
    """All submissions, the oldest first; one whose file is damaged is left out."""
    names = storage.names(_FOLDER)
    files = (name for name in names if name.endswith(".json"))
    found = filter(None, (_parse(storage.read(f"{_FOLDER}/{name}"), name) for name in files))
    known = (replace(each, stopped=f"{each.id}{_STOP}" in names) for each in found)
    return sorted(known, key=lambda each: each.submitted_ms)


def _parse(content: bytes | None, name: str) -> Submission | None:
    try:
        found = typed(Submission, loads(content or b"null"))
    except ValueError:
        return None
    return found if _file(found) == name and {*found.files} == _names(found) else None


def _file(submission: Submission) -> str:
    return f"{submission.id}.json"


def _names(submission: Submission) -> set[str]:
    """Of the files that it must have: any other one might be code, or lie elsewhere."""
    several = len(submission.studies) > 1
    studies = {f"{number}.yaml" for number in range(len(submission.studies))}
    return studies | {"profile.yaml"} | ({"studies.yaml"} if several else set())
