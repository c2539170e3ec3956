"""A stage's folder in the ledger, as everybody reads it and the few things said about it.

What is committed is decided by the commit objects alone (`checkpoints/<step>-<writer>.json`,
`outcome.json`); anything else that lies there is a leftover of a try that did not get that far.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from ablation.attempts import Attempt, Cause, Ended
from ablation.burial import buried
from ablation.cells import Begun, Failed, Finished, Outcome, PlannedStage, Standing, Waiting
from ablation.claims import Claim, claims_at
from ablation.commits import Commit, Ending, Restored, Segment, ended_by, segment_of
from ablation.identity import canonical
from ablation.journal import Record
from ablation.manifest import DamageError, Manifest, compare, fetch, read_sound
from ablation.storage import Storage, StorageError, Stored, stored_of
from ablation.typed import loads

__all__ = ["StageFolder"]

_log = logging.getLogger(__name__)
_ATTEMPT = re.compile(r"(\d+)\.json")
_COMMIT = re.compile(r"((\d+)-\w+)\.json")


@cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


def _unsaid(text: str) -> None:
    """Damage is said where a stage goes on without what is damaged."""


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
        """What `describe` said, None where nothing was (or it is damaged)."""
        try:
            return dict(loads(self.storage.read(self.at("stage.json")) or b"null"))
        except (ValueError, TypeError):
            return None

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
            number=self._next_number(),
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

    def bury(
        self, dead: Iterable[Claim], *, raised: Exception | None = None, run: str = ""
    ) -> None:
        """Record the end of tries that said none, by what their processes last claimed.

        `raised` is known to have ended the last of them, if it is of `run`. For the holder of the
        stage's lease alone: nobody else is at work then.
        """
        last = {claim.attempt: claim for claim in dead}
        unended = [attempt for attempt in self.attempts() if attempt.ended is None]
        for attempt in unended:
            known = raised if attempt is unended[-1] and attempt.run == run else None
            self._write_attempt(buried(attempt, last.get(attempt.number), known))

    def attempts(self) -> tuple[Attempt, ...]:
        """Every try, the first one first; one whose record is damaged says only its number."""
        found = map(self._attempt, self._attempt_numbers())
        return ended_by([attempt for attempt in found if attempt is not None], self.ending)

    def ending(self) -> Ending | None:
        """The outcome with its manifests, None where the stage has none (or a damaged one)."""
        try:
            return read_sound(self.storage, self.at("outcome.json"), Ending.parse)
        except (ValueError, KeyError, TypeError) as error:
            _warn_once(f"{self._name('outcome.json')} is damaged, and counts for nothing: {error}.")
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

    def claims(self) -> list[Claim]:
        """Of those who say that they are at work here; they may be dead."""
        claims = claims_at(self.storage, self.at("lease")).values()
        return [claim for claim in claims if not claim.over]

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

    def restore(
        self, into: Path, *, step: int | None = None, say: Callable[[str], None] = _warn_once
    ) -> Restored | None:
        """The newest committed state that is sound, or exactly that of `step` (0: none).

        `say` is told of every newer one that is not sound, and where none is.
        Raises StorageError where the state of `step` is not there or not sound.
        """
        for commit in self.commits(say) if step != 0 else ():
            if step in (None, commit.step):
                try:
                    return self._restore(commit, into / commit.name)
                except DamageError as error:
                    say(self._damage(commit.name, error))
        if step:
            raise StorageError(
                f"{self._name('checkpoints')} must hold a sound checkpoint of step {step}, got "
                f"none. Start the stage again."
            )
        if step is None and self._commit_names():
            say(f"{self._name('checkpoints')} holds no sound checkpoint: the stage begins anew.")
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

    def commits(self, say: Callable[[str], None] = _unsaid) -> Iterator[Commit]:
        """Readable commit objects of checkpoints, the newest first; `say` is told of the others."""
        for name in self._commit_names():
            try:
                commit = read_sound(self.storage, self.at(f"checkpoints/{name}.json"), Commit.parse)
                if commit is not None and commit.name != name:
                    raise ValueError(f"it was written as {commit.name}")
            except (ValueError, KeyError, TypeError) as error:
                say(self._damage(name, error))
            else:
                if commit is not None:
                    yield commit

    def segments(self, journal: Manifest) -> tuple[Segment, ...]:
        """The journal's files.

        Raises DamageError where one is missing or differs.
        """
        return tuple(self._segment(name, stored) for name, stored in journal.items())

    def at(self, path: str) -> str:
        """A path of the stage as a path of the storage."""
        return f"{self.path}/{path}"

    def _segment(self, name: str, stored: Stored) -> Segment:
        path = f"journal/{name}"
        content = self.storage.read(self.at(path))
        if content is None or stored_of(content) != stored:  # it may have been the way
            content = self.storage.read(self.at(path))
        compare(self._name(path), stored, None if content is None else stored_of(content))
        return segment_of(name, stored, content or b"", at=self._name(path))

    def _restore(self, commit: Commit, into: Path) -> Restored:
        return Restored(
            step=commit.step,
            total=commit.total,
            segments=self.segments(commit.journal),
            folder=fetch(self.storage, self.at(f"checkpoints/{commit.name}"), commit.files, into),
        )

    def _journals(self) -> tuple[Manifest, ...]:
        """The journals that are committed, the best one first."""
        ending = self.ending()
        if ending is not None and isinstance(ending.outcome, Finished):
            return (ending.journal,)
        return tuple(commit.journal for commit in self.commits())

    def _write_attempt(self, attempt: Attempt) -> None:
        self.storage.write(self._attempt_at(attempt.number), attempt.to_bytes(), durable=False)

    def _attempt_at(self, number: int) -> str:
        return self.at(f"attempts/{number}.json")

    def _commit_names(self) -> list[str]:
        found = filter(None, map(_COMMIT.fullmatch, self.storage.names(self.at("checkpoints"))))
        return [m[1] for m in sorted(found, key=lambda m: (int(m[2]), m[1]), reverse=True)]

    def _attempt(self, number: int) -> Attempt | None:
        try:
            return read_sound(self.storage, self._attempt_at(number), Attempt.parse)
        except ValueError:
            return Attempt(number=number, begun_ms=0, from_step=0)

    def _attempt_numbers(self) -> list[int]:
        found = filter(None, map(_ATTEMPT.fullmatch, self.storage.names(self.at("attempts"))))
        return sorted(int(match[1]) for match in found)

    def _next_number(self) -> int:
        """One that no try has, nor one that a listing which lags does not show."""
        known = max(self._attempt_numbers(), default=0)
        return next(n for n in count(known + 1) if not self.storage.read(self._attempt_at(n)))

    def _name(self, path: str) -> str:
        return f"{self.storage.uri}/{self.at(path)}"

    def _damage(self, name: str, error: Exception) -> str:
        return f"{self._name(f'checkpoints/{name}')} is damaged and left out: {error}"


def _records(segments: tuple[Segment, ...]) -> tuple[Record, ...]:
    return tuple(record for segment in segments for record in segment.records)
