"""Train a cell twice, undisturbed and killed at random steps, and compare all that came of it.

Both runs are real ones, on ledgers of their own that are removed afterwards. What is compared is
what the trainer says of every step, and what the ledger holds in the end.
"""

import logging
import math
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from random import Random
from statistics import median
from typing import TypeAlias

from rich.console import Console

from ablation.cells import Cell, Failed, Finished, PlannedStage
from ablation.certificate import Certificate
from ablation.display import displaying
from ablation.evidence import Evidence, difference
from ablation.interrupts import stoppable
from ablation.ledger import Ledger
from ablation.pace import Pace
from ablation.plan import Plan
from ablation.problems import Problem, StudyError
from ablation.profile import Profile
from ablation.protocol import Trainer
from ablation.provenance import now_ms, provenance
from ablation.terms import Terms
from ablation.witness import Kill, Witness

__all__ = ["Execute", "Finding", "Verification", "on_cluster"]

_log = logging.getLogger(__name__)
_NEVER = Pace(least_s=math.inf, most_s=math.inf)
_STEPS_A_CHECKPOINT = 3

Execute: TypeAlias = Callable[[Cell, Witness, Ledger, Terms], str]
"""Brings a cell as far as it comes, and says why no further."""

_Evidence: TypeAlias = Mapping[str, Evidence]
"""Of a run, by stage."""


class _UnfinishedError(Exception):
    """A run did not come to its end; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of a verification, in words; with its certificate where nothing differs."""

    text: str
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A cell that is to be killed `kills` times, at steps that are drawn from `seed`.

    With `steps`, only so many steps of its training are done, with no kill after the last of them,
    and nothing after it. Of the profile count how many workers a cell has, and its patience.

    Raises StudyError for less than one kill or two steps, and for more kills than there can be.
    """

    cell: Cell
    trainer: Trainer
    ledger: Ledger
    profile: Profile
    kills: int
    seed: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        for flag, value, least in (("--kills", self.kills, 1), ("--steps", self.steps, 2)):
            if value is not None and value < least:
                raise StudyError([Problem(flag, 0, f"must be at least {least}, got {value}.")])
        if self.steps is not None:
            self._check_kills(self.steps)

    def run(self, executor: AbstractContextManager[Execute]) -> Finding:
        """Do both runs and compare; a certificate is kept in the ledger, or removed from it.

        Raises StudyError where the cell has too few steps for its kills.
        """
        cell = self.cell if self.steps is None else replace(self.cell, stages=self.cell.stages[:1])
        head = cell.stages[0].digest
        ledger = self.ledger.patient(self.profile.patience_s, _log.warning)
        # In this order, since what still runs would write again what is removed.
        with self._witnesses() as (watching, killing), executor as execute:
            self.ledger.check_writable()
            try:
                straight = self._bring(cell, watching, _NEVER, execute)
            except _UnfinishedError as error:
                return Finding(text=f"{cell.title} does not finish by itself: {error}")
            killing = replace(killing, kills=tuple(self._draw(straight)))
            try:
                killed = self._bring(cell, killing, _pace(straight), execute)
            except _UnfinishedError as error:
                found = f"only where it was killed it did not finish: {error}"
            else:
                found = _difference(straight, killed)
            if found:
                ledger.certify(head, None)
                return Finding(text=f"{cell.title} does not resume to the same bits: {found}")
            certificate = self._certificate(killed, killing.killed())
        at = ledger.certify(head, certificate)
        return Finding(
            text=f"{cell.title}: {certificate} Certificate: {at}", certificate=certificate
        )

    def _check_kills(self, steps: int) -> None:
        most, bound = (steps, "at most") if self.steps is None else (steps - 1, "fewer than")
        if self.kills > most:
            sentence = f"must be {bound} the number of steps, {steps}, got {self.kills}."
            raise StudyError([Problem("--kills", 0, sentence)])

    @contextmanager
    def _witnesses(self) -> Generator[tuple[Witness, Witness]]:
        """Of the two runs; each has a folder for a ledger and for traces, which goes in the end."""
        path = f"verify-{secrets.token_hex(4)}"
        storage = self.ledger.storage.patient(self.profile.patience_s, _log.warning)
        straight = Witness(
            trainer=self.trainer, storage=storage.within(f"{path}/straight"), steps=self.steps
        )
        try:
            yield straight, replace(straight, storage=storage.within(f"{path}/killed"))
        finally:
            storage.remove(path)

    def _bring(self, cell: Cell, witness: Witness, pace: Pace, execute: Execute) -> _Evidence:
        """What a run leaves, when it is finished.

        Raises _UnfinishedError where it cannot be.
        """
        ledger = Ledger(witness.storage)
        ledger.check_writable()
        while True:
            before = witness.killed()
            terms = Terms(
                queued_ms=now_ms(),
                pace=pace,
                max_failures=self.profile.max_failures,
                patience_s=self.profile.patience_s,
            )
            reason = execute(cell, witness, ledger, terms)
            standings = ledger.standings(stage.digest for stage in cell)
            if cell.finished(standings):
                return {stage.name: _evidence(stage, witness, ledger) for stage in cell}
            if witness.killed() == before:
                ends = ((stage.name, standings[stage.digest]) for stage in cell)
                failed = (f"{name} failed: {e.error}" for name, e in ends if isinstance(e, Failed))
                raise _UnfinishedError(next(failed, reason or "the ledger does not say why."))
            # It may have failed for being lost too often in a row, which was our doing.
            for stage in cell:
                ledger.clear_failure(stage.digest)

    def _draw(self, straight: _Evidence) -> Iterator[Kill]:
        """At which steps, of all that were done, who is killed and when."""
        places = [(name, step) for name, left in straight.items() for step in left.steps]
        self._check_kills(len(places))
        if self.steps is not None:
            places.pop()
        random = Random(self.seed)
        for at in sorted(random.sample(range(len(places)), self.kills)):
            stage, step = places[at]
            yield Kill(stage=stage, step=step, moment=random.random(), worker=random.random())

    def _certificate(self, killed: _Evidence, kills: int) -> Certificate:
        return Certificate(
            kills=kills,
            steps=sum(len(left.steps) for left in killed.values()),
            total=sum(left.traces[-1].total for left in killed.values()),
            repeated=sum(left.repeated for left in killed.values()),
            workers=self.profile.layout.least,
            provenance=provenance(self.trainer),
        )


def _evidence(stage: PlannedStage, witness: Witness, ledger: Ledger) -> Evidence:
    """What is left of a finished stage."""
    folder = ledger.stage(stage.digest)
    ending = folder.ending()
    assert ending is not None
    assert isinstance(ending.outcome, Finished)
    return Evidence(
        traces=witness.traces(stage.name),
        journal=folder.journal(),
        metrics=ending.outcome.metrics,
        artifacts=ending.artifacts,
    )


def _pace(straight: _Evidence) -> Pace:
    """Checkpoints so often that a kill costs a few steps, yet in the background."""
    step_s = median(trace.took_s for left in straight.values() for trace in left.traces)
    every_s = _STEPS_A_CHECKPOINT * step_s
    return Pace(least_s=every_s, most_s=every_s)


def _difference(straight: _Evidence, killed: _Evidence) -> str:
    found = ((name, difference(left, killed[name])) for name, left in straight.items())
    return next((f"{name}, {text}" for name, text in found if text), "")


@contextmanager
def on_cluster(plan: Plan, profile: Profile, console: Console) -> Generator[Execute]:
    """Runs cells as `ablation run` does, on the cluster of a profile.

    Raises PlaceError where it is not there or has no room.
    """
    from ablation.executors.cluster import run_cluster
    from ablation.executors.connection import connected

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with connected(profile.layout) as layout:

        def execute(cell: Cell, witness: Witness, ledger: Ledger, terms: Terms) -> str:
            steps = ", ".join(f"{kill.stage} {kill.step}" for kill in witness.kills)
            say(f"{cell.title}, killed after {steps}:" if steps else f"{cell.title}, undisturbed:")
            with (
                displaying(replace(plan, cells=(cell,)), (), console) as display,
                stoppable(profile.grace_s, say) as stop_asked,
            ):
                lost = run_cluster(
                    [cell],
                    trainer=witness,
                    ledger=ledger,
                    place=profile.place,
                    layout=layout,
                    observe=display,
                    stop_asked=stop_asked,
                    terms=terms,
                )
                if stop_asked():
                    raise KeyboardInterrupt
            return "".join(lost.values())

        yield execute
