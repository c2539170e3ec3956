"""The commit protocol: how the one writer of a stage makes its work part of the ledger.

The order is the protocol. Files first, then the journal, then the small commit object; only when
that stands is anything older deleted. A writer that dies between two of these steps leaves the
commit before valid, and its leftovers are overwritten or deleted by the next writer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ablation.cells import Failed, Finished
from ablation.commits import Commit, Ending, Restored, Segment, manifest_of
from ablation.journal import Record, to_lines
from ablation.manifest import Manifest, upload_folder
from ablation.stage_folder import StageFolder
from ablation.storage import StorageError

__all__ = ["StageWriter"]


class StageWriter:
    """Writes to a stage's folder, going on after what was restored (None: from the beginning).

    Records already committed keep their time when their step is done again, so the mirror of a
    replay is the mirror of the original.
    """

    def __init__(self, folder: StageFolder, *, after: Restored | None) -> None:
        self._folder = folder
        self._storage = folder.storage
        self._segments = after.segments if after else ()
        self.step = after.step if after else 0
        """The last committed step."""

    def commit(self, step: int, total: int, *, folder: Path, records: Sequence[Record]) -> None:
        """Make the state saved in `folder` and the records since the last commit permanent.

        The checkpoint before stays, as the one to fall back on; all others go.
        """
        assert step > self.step, (step, self.step)
        marker, files = self._at(f"checkpoints/{step}.json"), self._at(f"checkpoints/{step}")
        self._storage.remove(marker)
        self._storage.remove(files)
        manifest = upload_folder(self._storage, folder, files)
        segments = self._with_records(records)
        commit = Commit(step=step, total=total, files=manifest, journal=manifest_of(segments))
        self._storage.write(marker, commit.to_bytes())
        keep = {**manifest_of(self._segments), **commit.journal}
        before, self.step, self._segments = self.step, step, segments
        self._prune_checkpoints(keep={before, step})
        self._prune_journal(keep)

    def finish(
        self, metrics: Mapping[str, float], *, export: Path, records: Sequence[Record]
    ) -> Finished:
        """End the stage well and for good, with the files in `export` as its artifacts."""
        self._refuse_if_finished()
        self._storage.remove(self._at("artifacts"))
        artifacts = upload_folder(self._storage, export, self._at("artifacts"))
        segments = self._with_records(records)
        finished = Finished(dict(metrics))
        ending = Ending(outcome=finished, artifacts=artifacts, journal=manifest_of(segments))
        self._storage.write(self._at("outcome.json"), ending.to_bytes())
        self.tidy()
        return finished

    def fail(self, error: str, detail: str = "") -> Failed:
        """End the stage badly; its checkpoints stay for a retry."""
        self._refuse_if_finished()
        failed = Failed(error, detail)
        self._storage.write(self._at("outcome.json"), Ending(outcome=failed).to_bytes())
        return failed

    def tidy(self) -> None:
        """Delete what a finished stage no longer needs; nothing where it has not finished."""
        ending = self._folder.ending()
        if ending is not None and isinstance(ending.outcome, Finished):
            if self._storage.names(self._at("checkpoints")):
                self._storage.remove(self._at("checkpoints"))
            self._prune_journal(ending.journal)

    def _with_records(self, records: Sequence[Record]) -> tuple[Segment, ...]:
        """Write the records as the journal's last segment.

        It takes in the segments before that are no longer than itself, so that a long journal is
        a few files and no record is rewritten more than a logarithm of times.
        """
        if not records:
            return self._segments
        kept, merged = list(self._segments), tuple(records)
        while kept and len(kept[-1].records) <= len(merged):
            merged = kept.pop().records + merged
        name = f"{merged[0].step}-{merged[-1].step}.jsonl"
        stored = self._storage.write(self._at(f"journal/{name}"), to_lines(merged))
        return (*kept, Segment(name, stored, merged))

    def _prune_checkpoints(self, keep: set[int]) -> None:
        names = self._storage.names(self._at("checkpoints"))
        kept = {f"{step}{suffix}" for step in keep for suffix in ("", ".json")}
        # A commit object goes before the files that it vouches for.
        for name in sorted(set(names) - kept, key=lambda name: not name.endswith(".json")):
            self._storage.remove(self._at(f"checkpoints/{name}"))

    def _prune_journal(self, keep: Manifest) -> None:
        for name in self._storage.names(self._at("journal")):
            if name not in keep:
                self._storage.remove(self._at(f"journal/{name}"))

    def _refuse_if_finished(self) -> None:
        if isinstance(self._folder.outcome(), Finished):
            raise StorageError(
                f"A stage ends well once, but {self._storage.uri}/{self._folder.path} has "
                f"finished already. Leave it, or plan a stage with another configuration."
            )

    def _at(self, path: str) -> str:
        return self._folder.at(path)
