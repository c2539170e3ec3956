"""Run what is missing of a study, and leave its tables in the ledger and in MLflow.

Conducts only: the executors run stages, the ledger holds what came of it, the mirror repeats it.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console

from ablation.address import public
from ablation.cells import Begun, Cell, Failed, Finished, Standing
from ablation.display import displaying
from ablation.events import Event, Observe
from ablation.interrupts import stoppable
from ablation.lease import Lease, acquire
from ablation.ledger import Ledger
from ablation.notice import Watch, announced
from ablation.pace import Pace
from ablation.plain import plain
from ablation.plan import Plan
from ablation.profile import Profile
from ablation.protocol import Trainer
from ablation.provenance import now_ms
from ablation.render import to_markdown
from ablation.retries import run_of
from ablation.spreadsheet import to_csv
from ablation.stage_folder import StageFolder
from ablation.stops import as_stopped, heeding, standings_of
from ablation.storage import LostStorageError
from ablation.submitted import keep
from ablation.supervise import is_begun, note_begun
from ablation.table import Table, tabulate
from ablation.terms import Terms
from ablation.why import work_lost

if TYPE_CHECKING:
    from ablation.follow import Follower
    from ablation.tracking import Mirror

__all__ = ["Run"]

_MIRRORED = "mirrored.txt"

Execute: TypeAlias = Callable[..., dict[str, str]]
"""Brings cells to their ends, or as far as they come before a stop, of all or of those with some
first stages (`stopped`); says why some were lost, by the digest of their first stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A plan, where it runs, and where a person is told of it.

    `run` is that of Terms: what failed in it is not tried again.
    """

    plan: Plan
    trainer: Trainer
    ledger: Ledger
    profile: Profile
    console: Console
    run: str
    inline: bool = False

    def finish(self) -> tuple[dict[str, Standing], dict[str, str]]:
        """How every stage stands afterwards, by digest, and why cells were lost, by title.

        Stages that failed in another run are tried again; stages that finished never are.

        Raises PlaceError or StorageError before anything is written, and LostStorageError
        afterwards.
        """
        standings = self.ledger.standings(self.plan.stages)
        todo = [cell for cell in self.plan.cells if not cell.finished(standings)]
        lost: dict[str, str] = {}
        if todo:
            with self._executor() as execute:
                self.ledger.check_writable(empty=not is_begun())
                note_begun()
                lost, standings = self._execute(todo, standings, execute)
        else:
            self._say(f"All {len(standings)} stages are finished: nothing to train.")
            if not self._is_mirrored(standings):
                self._conclude(self._follower(), standings)
        self._say_where()
        unended = {cell.stages[0].digest: cell.title for cell in todo if not cell.ended(standings)}
        unseen = f"its stages are not in the ledger; do all nodes see {self.ledger.storage.uri}?"
        return standings, {title: lost.get(digest, unseen) for digest, title in unended.items()}

    def sync(self) -> bool:
        """Repeat in the mirror what the ledger holds, however long it takes; whether that worked.

        Raises StorageError where the ledger cannot hold the study.
        """
        from ablation.follow import repeat

        self.ledger.check()
        standings, uri = standings_of(self.plan, self.ledger), public(self._mlflow[0])
        table, texts = self._tables(standings)
        if trouble := repeat(self._mirror(), standings, table, texts):
            self._say(
                f"MLflow at {uri} {trouble}. The ledger holds everything: run `ablation sync` when "
                f"MLflow answers again."
            )
            return False
        self._note_mirrored(standings)
        self._say(f"MLflow at {uri} has what the ledger at {self.ledger.storage.uri} has.")
        return True

    @property
    def _patient(self) -> Ledger:
        """The ledger while there are workers: they wait for its storage, so their driver does."""
        return self.ledger.patient(self.profile.patience_s, self._say)

    @property
    def _mlflow(self) -> tuple[str, Path | None]:
        return self.profile.mlflow(self.ledger.storage.local)

    def _execute(
        self, todo: Sequence[Cell], before: Mapping[str, Standing], execute: Execute
    ) -> tuple[dict[str, str], dict[str, Standing]]:
        """Run cells, and tell the console and the mirror; why some were lost, how all stand."""
        plan, ledger = self.plan, self._patient
        failed = (digest for digest, standing in before.items() if isinstance(standing, Failed))
        for digest, tries in ledger.tries(failed).items():
            if not tries or run_of(tries[-1].run) != run_of(self.run):
                self._forget_failure(digest, ledger.stage(digest))
        self._say_workers(before)
        data = {name: str(at) for name, at in self.profile.place.data.items()}
        seen = plan.study.fingerprints or {}
        keep(ledger, plan.study.name, text=plan.study.document.text, data=data, fingerprints=seen)
        done = [digest for digest, stands in before.items() if isinstance(stands, Finished)]
        follower = self._follower()
        with displaying(plan, done, self.console) as display:

            def observe(event: Event) -> None:
                with suppress(SystemExit):  # rich's, where nobody reads any more
                    display(event)
                follower(event)

            with (
                stoppable(self.profile.grace_s, self._say) as stop_asked,
                heeding(plan, ledger) as stopped,
            ):
                wanted = [cell for cell in todo if cell.stages[0].digest not in stopped()]
                lost = execute(
                    wanted,
                    observe=observe,
                    stop_asked=stop_asked,
                    stopped=stopped,
                    terms=self._terms(),
                )
                if stop_asked():
                    raise KeyboardInterrupt
                standings = as_stopped(ledger.standings(plan.stages), plan.cells, stopped())
        self._conclude(follower, standings)
        return lost, standings

    def _forget_failure(self, digest: str, folder: StageFolder) -> None:
        """Have a stage tried again, unless another driver, perhaps about to end it, is at it."""
        held = acquire(folder.storage, folder.at("lease"), run=self.run, now_ms=now_ms)
        if isinstance(held, Lease):
            try:
                folder.clear_failure()
            finally:
                held.release()
        else:
            stage = self.plan.stages[digest]
            self._say(f"{stage.name} of seed {stage.seed}, which failed, is left to its driver.")

    def _say_workers(self, before: Mapping[str, Standing]) -> None:
        """Say where cells go on with another number of workers than they have had."""
        layout = self.profile.layout
        now = range(1, 2) if self.inline else range(layout.least, layout.most + 1)
        begun = (digest for digest, standing in before.items() if isinstance(standing, Begun))
        tries = self._patient.tries(begun).values()
        if other := sorted({each[-1].workers for each in tries if each} - {*now}):
            had = " and ".join(map(str, other))
            self._say(
                f"Cells go on that had {had} workers: samples and masks stay the same, but sums "
                f"will differ in their last bits. --workers {other[0]} keeps them."
            )

    @contextmanager
    def _executor(self) -> Generator[Execute]:
        """What runs cells, when it can: the cluster is there, and a cell fits."""
        if self.inline:
            yield self._run_inline
            return
        from ablation.executors.cluster import run_cluster
        from ablation.executors.connection import connected

        with connected(self.profile.layout) as layout:
            yield partial(
                run_cluster,
                trainer=self.trainer,
                ledger=self.ledger,
                place=self.profile.place,
                layout=layout,
            )

    def _run_inline(
        self,
        cells: Sequence[Cell],
        *,
        observe: Observe,
        stop_asked: Callable[[], bool],
        stopped: Callable[[], frozenset[str]],
        terms: Terms,
    ) -> dict[str, str]:
        from ablation.executors.inline import run_inline

        try:
            with Watch(partial(announced, self.profile.notice or "")) as notice:
                return run_inline(
                    cells,
                    trainer=self.trainer,
                    ledger=self.ledger,
                    place=self.profile.place,
                    observe=observe,
                    should_stop=stop_asked,
                    stopped=stopped,
                    notice=notice,
                    terms=terms,
                )
        except LostStorageError as error:  # for the cells that it kept from their ends
            return {cell.stages[0].digest: str(error) for cell in cells}

    def _terms(self) -> Terms:
        profile = self.profile
        least_s, most_s = profile.bounds_s
        pace = Pace(least_s=least_s, most_s=most_s)
        return Terms(
            run=self.run,
            queued_ms=now_ms(),
            pace=pace.after(self._patient.attempts(self.plan.stages)),
            max_failures=profile.max_failures,
            patience_s=profile.patience_s,
            priority=profile.priority,
        )

    def _say(self, text: str) -> None:
        with suppress(SystemExit):  # rich's, where nobody reads any more
            self.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def _mirror(self) -> "Mirror":
        from ablation.tracking import Mirror

        uri, artifacts = self._mlflow
        return Mirror(plan=self.plan, ledger=self.ledger, uri=uri, artifacts=artifacts)

    def _follower(self) -> "Follower":
        from ablation.follow import Follower

        return Follower(self._mirror(), self._say)

    def _conclude(self, follower: "Follower", standings: Mapping[str, Standing]) -> None:
        """Write the tables, then mirror them: the ledger comes first."""
        table, texts = self._tables(standings)
        if follower.finish(standings, table, texts):
            self._note_mirrored(standings)

    def _tables(self, standings: Mapping[str, Standing]) -> tuple[Table, dict[str, str]]:
        """The table, and the study's texts as they are now in the ledger."""
        certificates = self._patient.certificates(self.plan.heads)
        table = tabulate(self.plan, standings, certificates)
        texts = {
            "study.yaml": self.plan.study.document.text,
            "table.md": to_markdown(table),
            "table.csv": to_csv(table),
        }
        self._patient.write_study(self.plan.study.name, texts)
        return table, texts

    def _note_mirrored(self, standings: Mapping[str, Standing]) -> None:
        self._patient.write_study(self.plan.study.name, {_MIRRORED: self._mirrored(standings)})

    def _mirrored(self, standings: Mapping[str, Standing]) -> str:
        """What a whole mirror mirrors, and on which server: the study's text, how stages stand."""
        held = (public(self._mlflow[0]), self.plan.study.document.text, dict(standings))
        return hashlib.sha256(repr(held).encode()).hexdigest()

    def _is_mirrored(self, standings: Mapping[str, Standing]) -> bool:
        uri = self._mlflow[0]
        lies = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
        held = self.ledger.read_study(self.plan.study.name, _MIRRORED)
        return lies and held == self._mirrored(standings)

    def _say_where(self) -> None:
        lost = work_lost(self._patient.tries(self.plan.stages))
        if lost.interruptions:
            self._say(f"{lost}.")
        self._say(f"Ledger: {self.ledger.storage.uri}")
        self._say(f"MLflow: {public(self._mlflow[0])}")
