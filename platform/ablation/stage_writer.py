"""The commit protocol: how a writer of a stage makes its work part of the ledger.

The order is the protocol. Files first, then the journal, then the small commit object; only when
that stands is anything older deleted. A writer that dies between two of these steps leaves the
commit before valid, and its leftovers are deleted by a later writer.

Writers of one stage at the same time do not harm each other. All that a writer writes bears its
own name, and a commit names only what its writer wrote. A writer deletes what it wrote itself, and
of others what lay there when it began and is older than two commits of its own; where that was the
journal of one that still lives, that one writes it again from memory.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ablation.attempts import Attempt
from ablation.cells import Failed, Finished
from ablation.commits import Commit, Ending, Restored, Segment, manifest_of
from ablation.journal import Record, metrics_to_json, to_lines
from ablation.manifest import Manifest, upload_folder
from ablation.stage_folder import StageFolder
from ablation.storage import StorageError

__all__ = ["StageWriter"]

_PARTS = ("checkpoints", "journal", "artifacts")


def _unguarded() -> None:
    """Nobody else can write."""


class StageWriter:
    """Writes to a stage's folder, going on after what was restored (None: from the beginning).

    Records already committed keep their time when their step is done again, so the mirror of a
    replay is the mirror of the original.
    """

    def __init__(self, folder: StageFolder, *, after: Restored | None) -> None:
        self._folder = folder
        self._storage = folder.storage
        self._name = secrets.token_hex(4)
        self._records = after.records if after else ()
        """What was restored, until the first commit takes it in."""
        self._segments: tuple[Segment, ...] = ()
        self._before: Manifest = {}
        self._disposable = {part: set(self._names(part)) for part in _PARTS}
        """What this writer may delete: what lay there when it began, and what it wrote."""
        self.step = after.step if after else 0
        """The last committed step."""

    def commit(
        self,
        step: int,
        total: int,
        *,
        folder: Path,
        records: Sequence[Record],
        guard: Callable[[], None] = _unguarded,
    ) -> None:
        """Make the state saved in `folder` and the records since the last commit permanent.

        The checkpoint before stays, as the one to fall back on; older ones go. `guard` is called
        last of all before the commit object is written; what it raises keeps it from that.
        """
        assert step > self.step, (step, self.step)
        name = f"{step}-{self._name}"
        self._disposable["checkpoints"] |= {name, f"{name}.json"}
        manifest = upload_folder(self._storage, folder, self._at(f"checkpoints/{name}"))
        segments = self._with_records(records)
        journal = manifest_of(segments)
        commit = Commit(name=name, step=step, total=total, files=manifest, journal=journal)
        guard()
        self._storage.write(self._at(f"checkpoints/{name}.json"), commit.to_bytes())
        before, self.step = self.step, step
        self._records, self._segments = (), segments
        self._prune(before)

    def finish(
        self,
        metrics: Mapping[str, float],
        *,
        export: Path,
        records: Sequence[Record],
        last: Attempt | None = None,
        guard: Callable[[], None] = _unguarded,
    ) -> Finished:
        """End the stage well and for good, with the files in `export` as its artifacts.

        Where another writer did so with the same metrics, its end stands. `last` is the attempt as
        it has ended; `guard` is called last of all before the outcome is written.
        """
        finished = Finished(dict(metrics))
        if not self._finished_by_another(finished):
            ending = replace(self._prepare(finished, export, records), last=last)
            guard()
            if not self._finished_by_another(finished):
                self._storage.write(self._at("outcome.json"), ending.to_bytes())
        self.tidy()
        return finished

    def fail(
        self, error: str, detail: str = "", *, guard: Callable[[], None] = _unguarded
    ) -> Failed:
        """End the stage badly; its checkpoints stay for a retry. `guard` is as in `finish`."""
        self._refuse_if_finished()
        failed = Failed(error, detail)
        guard()
        self._storage.write(self._at("outcome.json"), Ending(outcome=failed).to_bytes())
        return failed

    def tidy(self) -> None:
        """Delete what a finished stage no longer needs; nothing where it has not finished."""
        ending = self._folder.ending()
        if ending is not None and isinstance(ending.outcome, Finished):
            if self._names("checkpoints"):
                self._storage.remove(self._at("checkpoints"))
            self._delete("journal", self._disposable["journal"] - set(ending.journal))
            self._delete("artifacts", self._disposable["artifacts"] - {ending.name})

    def _prepare(self, finished: Finished, export: Path, records: Sequence[Record]) -> Ending:
        """Write what the end names, the journal as one file, and see that it is there."""
        self._disposable["artifacts"].add(self._name)
        place = self._at(f"artifacts/{self._name}")
        self._storage.remove(place)
        artifacts = upload_folder(self._storage, export, place, check=True)
        every = (*self._records, *_records(self._segments), *records)
        journal = manifest_of([self._segment(every)] if every else [])
        return Ending(outcome=finished, name=self._name, artifacts=artifacts, journal=journal)

    def _with_records(self, records: Sequence[Record]) -> tuple[Segment, ...]:
        """Write the records as the journal's last segment, and again what another deleted.

        It takes in the segments before that are no longer than itself, so that a long journal is
        a few files and no record is rewritten more than a logarithm of times.
        """
        kept, merged = list(self._segments), (*self._records, *records)
        while merged and kept and len(kept[-1].records) <= len(merged):
            merged = kept.pop().records + merged
        there = set(self._names("journal"))
        for segment in kept:
            if segment.name not in there:
                self._segment(segment.records)
        return (*kept, self._segment(merged)) if merged else tuple(kept)

    def _segment(self, records: tuple[Record, ...]) -> Segment:
        name = f"{records[0].step}-{records[-1].step}-{self._name}.jsonl"
        self._disposable["journal"].add(name)
        stored = self._storage.write(self._at(f"journal/{name}"), to_lines(records))
        return Segment(name, stored, records)

    def _prune(self, before: int) -> None:
        """Delete what is older than the commit before the last, and then what no commit names."""
        old = {name for name in self._disposable["checkpoints"] if _last_step(name) < before}
        # A commit object goes before the files that it vouches for.
        self._delete("checkpoints", sorted(old, key=lambda name: not name.endswith(".json")))
        journal = manifest_of(self._segments)
        unnamed = self._disposable["journal"] - set(journal) - set(self._before)
        self._before = journal
        old = {name for name in unnamed if _last_step(name) <= before}
        if old:
            named = {name for commit in self._folder.commits() for name in commit.journal}
            self._delete("journal", old - named)

    def _delete(self, part: str, names: Iterable[str]) -> None:
        for name in tuple(names):
            self._storage.remove(self._at(f"{part}/{name}"))
            self._disposable[part].discard(name)

    def _finished_by_another(self, finished: Finished) -> bool:
        outcome = self._folder.outcome()
        if not isinstance(outcome, Finished):
            return False
        # As JSON, where nan equals nan.
        if metrics_to_json(outcome.metrics) != metrics_to_json(finished.metrics):
            self._refuse_if_finished()
        return True

    def _refuse_if_finished(self) -> None:
        if isinstance(self._folder.outcome(), Finished):
            raise StorageError(
                f"A stage ends well once, but {self._storage.uri}/{self._folder.path} has "
                f"finished already. Leave it, or plan a stage with another configuration."
            )

    def _names(self, part: str) -> list[str]:
        return self._storage.names(self._at(part))

    def _at(self, path: str) -> str:
        return self._folder.at(path)


def _records(segments: Iterable[Segment]) -> tuple[Record, ...]:
    return tuple(record for segment in segments for record in segment.records)


def _last_step(name: str) -> int:
    """The last step of `<step>-<writer>…` or `<from>-<to>-<writer>.jsonl`; -1 for all else."""
    steps = [part for part in name.split("-")[:-1] if part.isdecimal()]
    return int(steps[-1]) if steps else -1
