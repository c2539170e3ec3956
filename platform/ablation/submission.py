"""What was submitted to a cluster, kept in the ledger's storage until it has ended.

Ray forgets its jobs with its head. Here it stands which studies are to be brought to their ends and
with what driver, so that whoever looks can submit them again. Every submission is one small file.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from ablation.storage import Storage

__all__ = ["Submission", "find_submissions", "new_submission", "write_submission"]

_FOLDER = "submissions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Studies that were submitted together, by their names.

    `command` runs in a folder of `files`, in which the studies are `0.yaml` and so on; `jobs`
    counts the drivers that Ray was given so far.
    Times are milliseconds since 1970 (UTC).
    """

    id: str
    studies: tuple[str, ...]
    command: tuple[str, ...]
    files: Mapping[str, str]
    grace_s: float
    by: str
    submitted_ms: int
    jobs: int = 1
    stopped: bool = False
    """Whether somebody asked for its end."""
    code: int | None = None
    """The exit code that it ended with."""

    @property
    def job(self) -> str:
        """What Ray calls its present driver."""
        return f"{self.id}-{self.jobs}"

    @property
    def texts(self) -> list[str]:
        """The studies' files, in their order."""
        return [self.files[f"{number}.yaml"] for number in range(len(self.studies))]

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
    command: Sequence[str],
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
        command=tuple(command),
        files=files,
        grace_s=grace_s,
        by=by,
        submitted_ms=now_ms,
    )


def write_submission(storage: Storage, submission: Submission) -> None:
    """Keep how a submission stands; raises StorageError where the storage refuses."""
    content = json.dumps(asdict(submission), indent=1).encode()
    storage.write(f"{_FOLDER}/{submission.id}.json", content)


def find_submissions(storage: Storage) -> list[Submission]:
    """All submissions, the oldest first; one whose file is damaged is left out."""
    names = (name for name in storage.names(_FOLDER) if name.endswith(".json"))
    found = (_parse(storage.read(f"{_FOLDER}/{name}")) for name in names)
    return sorted(filter(None, found), key=lambda each: each.submitted_ms)


def _parse(content: bytes | None) -> Submission | None:
    known = {part.name for part in fields(Submission)}
    try:
        values = json.loads(content or b"null")
        lists = {name: tuple(values[name]) for name in ("studies", "command")}
        return Submission(**{k: v for k, v in values.items() if k in known} | lists)
    except (ValueError, TypeError, KeyError):
        return None
