"""Run what is missing of a study, and leave its tables in the ledger and in MLflow.

Conducts only: the executors run stages, the ledger holds what came of it, the mirror repeats it.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console

from ablation.cells import Cell, Standing
from ablation.display import displaying
from ablation.events import Event, Observe
from ablation.interrupts import stoppable
from ablation.ledger import Ledger
from ablation.notice import Watch, announced
from ablation.pace import Pace, time_between_interruptions
from ablation.plan import Plan
from ablation.profile import Profile
from ablation.protocol import Trainer
from ablation.provenance import now_ms
from ablation.render import to_csv, to_markdown
from ablation.storage import StorageError
from ablation.table import tabulate
from ablation.terms import Terms

if TYPE_CHECKING:
    from ablation.follow import Follower

__all__ = ["Run"]

_MIRRORED = "mirrored.txt"

Execute: TypeAlias = Callable[[Sequence[Cell], Observe, Callable[[], bool]], dict[str, str]]
"""Brings cells to their ends, or as far as they come before a stop; says why some were lost, by
the digest of their first stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A plan, where it runs, and where a person is told of it."""

    plan: Plan
    trainer: Trainer
    ledger: Ledger
    profile: Profile
    console: Console
    inline: bool = False

    def finish(self) -> tuple[dict[str, Standing], dict[str, str]]:
        """How every stage stands afterwards, by digest, and why cells were lost, by title.

        Stages that failed before are tried again; stages that finished never are.

        Raises PlaceError before anything is written.
        """
        standings = self.ledger.standings(self.plan.stages)
        todo = [cell for cell in self.plan.cells if not cell.finished(standings)]
        lost: dict[str, str] = {}
        if todo:
            with self._executor() as execute:
                lost = self._execute(todo, execute)
            standings = self.ledger.standings(self.plan.stages)
        else:
            self.console.print(f"All {len(standings)} stages are finished: nothing to train.")
            if not self._is_mirrored():
                self._conclude(self._follower(), standings)
        self._say_where()
        unended = {cell.stages[0].digest: cell.title for cell in todo if not cell.ended(standings)}
        unseen = f"its stages are not in the ledger; do all nodes see {self.ledger.storage.uri}?"
        return standings, {title: lost.get(digest, unseen) for digest, title in unended.items()}

    def _execute(self, todo: Sequence[Cell], execute: Execute) -> dict[str, str]:
        """Run cells, and tell the console and the mirror of it."""
        plan, ledger = self.plan, self.ledger
        for digest in plan.stages:
            ledger.clear_failure(digest)
        place = json.dumps({name: str(at) for name, at in self.profile.place.data.items()})
        ledger.write_study(
            plan.study.name, {"study.yaml": plan.study.document.text, "place.json": place}
        )
        done = len(plan.stages) - len({stage.digest for cell in todo for stage in cell})
        follower = self._follower()
        with displaying(plan, done, self.console) as display:

            def observe(event: Event) -> None:
                display(event)
                follower(event)

            with stoppable(self.profile.grace_s, self._say) as stop_asked:
                lost = execute(todo, observe, stop_asked)
                if stop_asked():
                    raise KeyboardInterrupt
        self._conclude(follower, ledger.standings(plan.stages))
        return lost

    @contextmanager
    def _executor(self) -> Generator[Execute]:
        """What runs cells, when it can: the cluster is there, and a cell fits."""
        if self.inline:
            yield self._run_inline
            return
        from ablation.executors.cluster import connected, run_cluster

        with connected(self.profile.layout) as layout:

            def execute(
                cells: Sequence[Cell], observe: Observe, stop_asked: Callable[[], bool]
            ) -> dict[str, str]:
                return run_cluster(
                    cells,
                    trainer=self.trainer,
                    ledger=self.ledger,
                    place=self.profile.place,
                    layout=layout,
                    observe=observe,
                    stop_asked=stop_asked,
                    terms=self._terms(),
                )

            yield execute

    def _run_inline(
        self, cells: Sequence[Cell], observe: Observe, stop_asked: Callable[[], bool]
    ) -> dict[str, str]:
        from ablation.executors.inline import run_inline

        try:
            with Watch(partial(announced, self.profile.notice or "")) as notice:
                run_inline(
                    cells,
                    trainer=self.trainer,
                    ledger=self.ledger,
                    place=self.profile.place,
                    observe=observe,
                    should_stop=stop_asked,
                    notice=notice,
                    terms=self._terms(),
                )
        except StorageError as error:  # for the cells that it kept from their ends
            return {cell.stages[0].digest: str(error) for cell in cells}
        return {}

    def _terms(self) -> Terms:
        profile = self.profile
        least_s, most_s = profile.bounds_s
        between_s = time_between_interruptions(self.ledger.attempts(self.plan.stages))
        return Terms(
            queued_ms=now_ms(),
            pace=Pace(least_s=least_s, most_s=most_s, between_s=between_s),
            max_failures=profile.max_failures,
            patience_s=profile.patience_s,
        )

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _follower(self) -> "Follower":
        from ablation.follow import Follower
        from ablation.tracking import Mirror

        uri, artifacts = self.profile.mlflow
        mirror = Mirror(plan=self.plan, ledger=self.ledger, uri=uri, artifacts=artifacts)
        return Follower(mirror, self._say)

    def sync(self) -> bool:
        """Repeat in the mirror what the ledger holds; whether that worked."""
        self._conclude(self._follower(), self.ledger.standings(self.plan.stages))
        return self._is_mirrored()

    def _conclude(self, follower: "Follower", standings: Mapping[str, Standing]) -> None:
        """Write the tables, then mirror them: the ledger comes first."""
        table, name = tabulate(self.plan, standings), self.plan.study.name
        texts = {
            "study.yaml": self.plan.study.document.text,
            "table.md": to_markdown(table),
            "table.csv": to_csv(table),
        }
        self.ledger.write_study(name, texts)
        if follower.finish(standings, table, texts):
            self.ledger.write_study(name, {_MIRRORED: self._mirrored()})

    def _mirrored(self) -> str:
        """What a whole mirror mirrors: the study's text, its stages, and the server it is on."""
        held = (self.profile.mlflow[0], self.plan.study.document.text, list(self.plan.stages))
        return hashlib.sha256(repr(held).encode()).hexdigest()

    def _is_mirrored(self) -> bool:
        uri = self.profile.mlflow[0]
        lies = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
        return lies and self.ledger.read_study(self.plan.study.name, _MIRRORED) == self._mirrored()

    def _say_where(self) -> None:
        for name, at in (("Ledger", self.ledger.storage.uri), ("MLflow", self.profile.mlflow[0])):
            self._say(f"{name}: {at}")
