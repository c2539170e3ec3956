"""A stage's folder in the ledger, as everybody reads it and the few things said about it.

What is committed is decided by the commit objects alone (`checkpoints/<step>-<writer>.json`,
`outcome.json`); anything else that lies there is a leftover of a try that did not get that far.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation.attempts import Attempt, Cause, Ended
from ablation.cells import Begun, Failed, Finished, Outcome, PlannedStage, Standing, Waiting
from ablation.claims import Claim, claims_at
from ablation.commits import Commit, Ending, Restored, Segment
from ablation.identity import canonical
from ablation.journal import Record, parse_lines
from ablation.manifest import DamageError, Manifest, compare, fetch
from ablation.storage import Storage, StorageError, Stored, stored_of

__all__ = ["StageFolder"]

_log = logging.getLogger(__name__)
_COMMIT = re.compile(r"(\d+)-\w+\.json")


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The folder `path` of one stage. Reading it writes nothing."""

    storage: Storage
    path: str

    def describe(self, stage: PlannedStage, provenance: Mapping[str, Any]) -> None:
        """Say once what the stage is and who created it; a second time changes nothing."""
        if self.storage.read(self.at("stage.json")) is None:
            text = {
                "name": stage.name,
                "kind": stage.kind,
                "digest": stage.digest,
                "config": json.loads(canonical(stage.config)),
                "seed": stage.seed,
                "data": stage.data,
                "parent": stage.parent,
                "created": provenance,
            }
            self.storage.write(
                self.at("stage.json"), json.dumps(text, indent=1).encode(), durable=False
            )

    def description(self) -> Mapping[str, Any] | None:
        """What `describe` said, None where nothing was."""
        content = self.storage.read(self.at("stage.json"))
        return None if content is None else dict(json.loads(content))

    def begin_attempt(
        self,
        *,
        time_ms: int,
        from_step: int,
        workers: int = 1,
        run: str = "",
        queued_ms: int | None = None,
        provenance: Mapping[str, Any],
    ) -> Attempt:
        """Record that a try began."""
        attempt = Attempt(
            number=max(self._attempt_numbers(), default=0) + 1,
            begun_ms=time_ms,
            from_step=from_step,
            workers=workers,
            run=run,
            queued_ms=queued_ms,
            provenance=provenance,
        )
        self._write_attempt(attempt)
        return attempt

    def end_attempt(
        self,
        attempt: Attempt,
        how: Ended,
        *,
        time_ms: int | None,
        step: int | None,
        cause: Cause | None = None,
        error: str = "",
    ) -> None:
        """Record how a try ended."""
        self._write_attempt(
            replace(attempt, ended_ms=time_ms, ended=how, step=step, cause=cause, error=error)
        )

    def bury(self, dead: Iterable[Claim]) -> None:
        """Record the end of tries that said none, by what their processes last claimed.

        Only for the holder of the stage's lease: nobody else is at work then.
        """
        last = {claim.attempt: claim for claim in dead}
        for attempt in self.attempts():
            if attempt.ended is None:
                claim = last.get(attempt.number)
                self.end_attempt(
                    attempt,
                    "preempted" if claim and claim.notice else "lost",
                    time_ms=claim.now_ms if claim else None,
                    step=max(claim.step, attempt.from_step) if claim else None,
                    error=claim.notice if claim else "",
                )

    def attempts(self) -> tuple[Attempt, ...]:
        """Every try, the first one first; one whose record is damaged says only its number."""
        numbers = self._attempt_numbers()
        contents = (self.storage.read(self.at(f"attempts/{number}.json")) for number in numbers)
        return tuple(
            _attempt(number, content)
            for number, content in zip(numbers, contents, strict=True)
            if content is not None
        )

    def ending(self) -> Ending | None:
        """The outcome with its manifests, None where the stage has none (or a damaged one)."""
        content = self.storage.read(self.at("outcome.json"))
        try:
            return None if content is None else Ending.parse(content)
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("%s is damaged and counts for nothing: %s.", self._name("outcome"), error)
            return None

    def outcome(self) -> Outcome | None:
        """How the stage ended, None where it has not."""
        ending = self.ending()
        return None if ending is None else ending.outcome

    def standing(self) -> Standing:
        """How the stage stands; what is committed counts, sound or not."""
        if outcome := self.outcome():
            return outcome
        newest = next(self.commits(), None)
        return Waiting() if newest is None else Begun(newest.step, newest.total)

    def evidence(self) -> tuple[bool, int]:
        """What changes whenever a worker gets to do anything: has it ended, and how many tries."""
        return self.outcome() is not None, len(self._attempt_numbers())

    def claimed(self) -> bool:
        """Whether some process says that it is at work here; it may be dead."""
        claims = claims_at(self.storage, self.at("lease")).values()
        return any(not claim.over for claim in claims)

    def journal(self) -> tuple[Record, ...]:
        """The committed record: each step once, in order.

        Raises DamageError where it cannot be read and no earlier one can.
        """
        while True:
            trouble, journals = None, self._journals()
            for journal in journals:
                try:
                    return _records(self.segments(journal))
                except DamageError as error:
                    trouble = error
            if journals == self._journals():  # else a writer went on meanwhile
                if trouble is None:
                    return ()
                raise trouble

    def restore(self, into: Path, *, step: int | None = None) -> Restored | None:
        """The newest committed state that is sound, or exactly that of `step` (0: none).

        Raises StorageError where the state of `step` is not there or not sound.
        """
        for commit in self.commits() if step != 0 else ():
            if step in (None, commit.step):
                try:
                    return self._restore(commit, into / commit.name)
                except DamageError as error:
                    self._warn(commit.step, error)
        if step:
            raise StorageError(
                f"{self._name('checkpoints')} must hold a sound checkpoint of step {step}, got "
                f"none. Start the stage again."
            )
        return None

    def artifacts(self, into: Path) -> Path:
        """A local folder with what a finished stage exported, verified: to be read only.

        Raises StorageError where the stage has not finished, DamageError where a file is damaged.
        """
        ending = self.ending()
        if ending is None or not isinstance(ending.outcome, Finished):
            raise StorageError(
                f"{self._name('artifacts')} must be of a finished stage, got one that "
                f"{'failed' if ending else 'has not ended'}. Finish that stage first."
            )
        return fetch(self.storage, self.at(f"artifacts/{ending.name}"), ending.artifacts, into)

    def clear_failure(self) -> bool:
        """Forget that the stage failed, so that it is tried again; whether there was a failure."""
        if failed := isinstance(self.outcome(), Failed):
            self.storage.remove(self.at("outcome.json"))
        return failed

    def commits(self) -> Iterator[Commit]:
        """Readable commit objects of checkpoints, the newest first."""
        names = self.storage.names(self.at("checkpoints"))
        found = [(int(match[1]), match[0]) for match in map(_COMMIT.fullmatch, names) if match]
        for step, name in sorted(found, reverse=True):
            content = self.storage.read(self.at(f"checkpoints/{name}"))
            if content is not None:
                try:
                    yield Commit.parse(content)
                except (ValueError, KeyError, TypeError) as error:
                    self._warn(step, error)

    def segments(self, journal: Manifest) -> tuple[Segment, ...]:
        """The journal's files.

        Raises DamageError where one is missing or differs.
        """
        return tuple(self._segment(name, stored) for name, stored in journal.items())

    def at(self, path: str) -> str:
        """A path of the stage as a path of the storage."""
        return f"{self.path}/{path}"

    def _segment(self, name: str, stored: Stored) -> Segment:
        content = self.storage.read(self.at(f"journal/{name}"))
        compare(
            self._name(f"journal/{name}"), stored, None if content is None else stored_of(content)
        )
        return Segment(name, stored, parse_lines(content or b""))

    def _restore(self, commit: Commit, into: Path) -> Restored:
        return Restored(
            step=commit.step,
            total=commit.total,
            segments=self.segments(commit.journal),
            folder=fetch(self.storage, self._checkpoint(commit), commit.files, into),
        )

    def _journals(self) -> tuple[Manifest, ...]:
        """The journals that are committed, the best one first."""
        ending = self.ending()
        if ending is not None and isinstance(ending.outcome, Finished):
            return (ending.journal,)
        return tuple(commit.journal for commit in self.commits())

    def _checkpoint(self, commit: Commit) -> str:
        return self.at(f"checkpoints/{commit.name}")

    def _write_attempt(self, attempt: Attempt) -> None:
        path = self.at(f"attempts/{attempt.number}.json")
        self.storage.write(path, attempt.to_bytes(), durable=False)

    def _attempt_numbers(self) -> list[int]:
        return sorted(_numbers(self.storage.names(self.at("attempts"))))

    def _name(self, path: str) -> str:
        return f"{self.storage.uri}/{self.at(path)}"

    def _warn(self, step: int, error: Exception) -> None:
        _log.warning(
            "The checkpoint of step %d in %s is damaged and left out: %s",
            step,
            self._name("checkpoints"),
            error,
        )


def _records(segments: tuple[Segment, ...]) -> tuple[Record, ...]:
    return tuple(record for segment in segments for record in segment.records)


def _attempt(number: int, content: bytes) -> Attempt:
    try:
        return Attempt.parse(content)
    except (ValueError, TypeError, AttributeError):
        return Attempt(number=number, begun_ms=0, from_step=0)


def _numbers(names: list[str]) -> list[int]:
    """The numbers n of names `n.json`."""
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return [int(stem) for stem in stems if stem.isdecimal()]
