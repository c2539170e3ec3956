"""The ledger: the one place where the evidence lies, a folder a stage on any storage.

Layout: `stages/<digest>/` (see `stage_folder` and `stage_writer`) and `studies/<name>/`, which
holds text for people and is rewritten at will.
"""

import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ablation.attempts import Attempt
from ablation.cells import Outcome, Standing
from ablation.certificate import Certificate
from ablation.commits import Restored
from ablation.identity import NAME, NAME_RULE
from ablation.journal import Record
from ablation.manifest import read_sound
from ablation.stage_folder import StageFolder
from ablation.stage_writer import StageWriter
from ablation.storage import Storage, StorageError
from ablation.typed import loads

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{8,128}")
_LAYOUT, _LAYOUT_FILE = 1, "ledger.json"
_READERS = 16  # requests to an object store at a time

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ledger:
    """All stages and studies of a storage. It pickles, and opening it touches nothing."""

    storage: Storage

    @classmethod
    def open(cls, uri: str | Path) -> "Ledger":
        """The ledger at a local path or at a URI such as `s3://bucket/folder`.

        Raises StorageError where there can be no storage at that address.
        """
        return cls(Storage.open(uri))

    def patient(self, patience_s: float, say: Callable[[str], None]) -> "Ledger":
        """The same ledger, once begun: it asks a storage that refuses again (`Storage.patient`).

        In place of a local disk that is away it does not see, or make, an empty folder.
        """
        storage = self.storage.patient(patience_s, say)
        return Ledger(replace(storage, anchor=_LAYOUT_FILE))

    def check(self, *, empty: bool = False) -> None:
        """See that a ledger lies here whose layout is known; or nothing, where it may be `empty`.

        Else nothing is a refusal of the storage, which `patient` waits for: in place of a disk
        that is not mounted, work would begin anew.
        Raises StorageError where that does not hold.
        """
        storage = self.storage if empty else replace(self.storage, anchor=_LAYOUT_FILE)
        try:
            read_sound(storage, _LAYOUT_FILE, _check_layout)
        except ValueError as error:
            at = f"{self.storage.uri.rstrip('/')}/{_LAYOUT_FILE}"
            raise StorageError(f"{at} {error} or choose another storage.") from None

    def check_writable(self, *, empty: bool = True) -> None:
        """Write, read and delete a small file; `ledger.json`, which names the layout, stays.

        It also keeps the folder from being empty: pyarrow would put an object in its place, and
        not every S3 server bears one where a folder should be.
        Raises StorageError, before anything is written, where `check` does, and where any of that
        does not work.
        """
        self.check(empty=empty)
        begun = self.storage.read(_LAYOUT_FILE) is not None
        layout = json.dumps({"layout": _LAYOUT}) + "\n"
        self.storage.check_writable(keep={} if begun else {_LAYOUT_FILE: layout.encode()})

    def stage(self, digest: str) -> StageFolder:
        """The folder of a stage, there or not.

        Raises ValueError where `digest` is not 8 to 128 hexadecimal digits.
        """
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"A digest must be 8 to 128 hexadecimal digits, got {digest!r}.")
        return StageFolder(self.storage, f"stages/{digest}")

    def writer(self, digest: str, *, after: Restored | None = None) -> StageWriter:
        """The writer of a stage that goes on after what was restored."""
        return StageWriter(self.stage(digest), after=after)

    def outcome(self, digest: str) -> Outcome | None:
        """How a stage ended, None where it has not."""
        return self.stage(digest).outcome()

    def standing(self, digest: str) -> Standing:
        """How a stage stands."""
        return self.stage(digest).standing()

    def standings(self, digests: Iterable[str]) -> dict[str, Standing]:
        """How many stages stand, each of them once, in the order given."""
        return _of_each(digests, self.standing)

    def attempts(self, digests: Iterable[str]) -> list[Attempt]:
        """Every try at stages, stage by stage."""
        return [attempt for attempts in self.tries(digests).values() for attempt in attempts]

    def tries(self, digests: Iterable[str]) -> dict[str, tuple[Attempt, ...]]:
        """Every try at stages, by their digest."""
        return _of_each(digests, lambda digest: self.stage(digest).attempts())

    def journal(self, digest: str) -> tuple[Record, ...]:
        """The committed record of a stage: each step once, in order."""
        return self.stage(digest).journal()

    def artifacts(self, digest: str, into: Path) -> Path:
        """A local folder with what a finished stage exported, verified: to be read only."""
        return self.stage(digest).artifacts(into)

    def clear_failure(self, digest: str) -> bool:
        """Forget that a stage failed, so that it is tried again; whether there was a failure."""
        return self.stage(digest).clear_failure()

    def certify(self, digest: str, certificate: Certificate | None) -> str:
        """Keep a certificate of a stage, or (None) no longer any; where it lies."""
        path = self.stage(digest).at("certificate.json")
        if certificate is None:
            self.storage.remove(path)
        else:
            self.storage.write(path, certificate.to_bytes())
        return f"{self.storage.uri}/{path}"

    def certificates(self, digests: Iterable[str]) -> dict[str, Certificate]:
        """Certificates of those stages that have one."""
        found = _of_each(digests, self._certificate)
        return {digest: certificate for digest, certificate in found.items() if certificate}

    def _certificate(self, digest: str) -> Certificate | None:
        path = self.stage(digest).at("certificate.json")
        content = self.storage.read(path)
        try:
            return None if content is None else Certificate.parse(content)
        except (ValueError, TypeError) as error:
            _log.warning("%s/%s counts for nothing: %s.", self.storage.uri, path, error)
            return None

    def write_study(self, name: str, texts: Mapping[str, str]) -> None:
        """Write texts about a study by file name: as submitted, its plan, its tables.

        Raises ValueError where a name is not letters, digits, spaces and `_.-`.
        """
        for file, text in texts.items():
            self.storage.write(_study_path(name, file), text.encode(), durable=False)

    def read_study(self, name: str, file: str) -> str | None:
        """One of the texts about a study, None where there is none."""
        content = self.storage.read(_study_path(name, file))
        return None if content is None else content.decode(errors="replace")

    def studies(self) -> list[str]:
        """Names of all studies that something was written about."""
        return self.storage.names("studies")


def _of_each(digests: Iterable[str], read: Callable[[str], _T]) -> dict[str, _T]:
    """What is read of each stage, once, in the order given.

    The readers are daemon threads: a pool's would be waited for where an interrupt, or an error,
    finds them waiting for a storage.
    """
    found: dict[str, Future[_T]] = {digest: Future() for digest in digests}
    left = deque(found.items())

    def work() -> None:
        while True:
            try:
                digest, answer = left.popleft()
            except IndexError:  # another reader has taken the last
                return
            try:
                answer.set_result(read(digest))
            except BaseException as error:
                answer.set_exception(error)

    for _ in range(min(_READERS, len(found))):
        threading.Thread(target=work, name="reader", daemon=True).start()
    try:
        return {digest: answer.result() for digest, answer in found.items()}
    finally:
        left.clear()


def _check_layout(content: bytes) -> None:
    try:
        layout = loads(content)["layout"]
    except (ValueError, KeyError, TypeError):
        layout = None
    if isinstance(layout, int) and layout > _LAYOUT:
        raise ValueError(
            f"must say layout {_LAYOUT}, got {layout}: a newer version wrote this ledger. Use that "
            f"version,"
        )
    if layout != _LAYOUT:
        raise ValueError(
            f'must be {{"layout": {_LAYOUT}}}, got {content[:40]!r}. Bring back the file that was '
            f"there,"
        )


def _study_path(name: str, file: str) -> str:
    for part in (name, file):
        if not NAME.fullmatch(part):
            raise ValueError(f"A name must be {NAME_RULE}, got {part!r}.")
    return f"studies/{name}/{file}"
