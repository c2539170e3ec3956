"""What a stage does while something that it needs is not there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ablation import execute as executing
from ablation.cells import Failed, Finished
from ablation.events import Event
from ablation.execute import execute
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.steps import Steps
from ablation.storage import StorageError
from ablation.terms import Terms
from ablation.testing import Toy, ToyTrainer, ignore, paced, planned, stop_after
from ablation.toy import ToyProgress, ToyResult

STAGE = planned("train", Toy(steps=3), seed=0)


class GoneError(Exception):
    """Of data that may come back."""

    away = True


@dataclass
class Needy:
    """It needs something that is away so often; then it does a step."""

    away: int = 0

    def stages(self) -> Any:
        return {"train": self}

    def run(self, config: Any, /, **_: Any) -> Steps:
        if self.away:
            self.away -= 1
            raise GoneError("no disk")
        yield ToyProgress(1, 1, {}, nothing, dict)
        return ToyResult({"loss": 1.0}, nothing)


def nothing(folder: Path) -> None:
    pass


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited; nobody really waits."""
    sleeps = [0.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return sum(sleeps)

        @staticmethod
        def sleep(seconds: float) -> None:
            sleeps.append(seconds)

    monkeypatch.setattr(executing, "time", Time)
    return sleeps


def run(ledger: Ledger, trainer=None, observe=ignore, terms=None, **options):
    return execute(
        STAGE,
        trainer=trainer or ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=observe,
        terms=terms or paced(0.0),
        origin={"host": "here"},
        clock=time.monotonic,
        **options,
    )


def test_execute__waits_for_what_is_away(ledger, slept):
    seen: list[Event] = []
    outcome = run(ledger, Needy(3), seen.append, Terms(max_failures=0, patience_s=60))
    assert outcome == Finished({"loss": 1.0})
    assert sum(slept) == 2 + 4 + 8
    assert [event.kind for event in seen if event.kind == "retried"] == ["retried"] * 3
    causes = [attempt.cause for attempt in ledger.stage(STAGE.digest).attempts()]
    assert causes == ["away"] * 3 + [None]


def test_execute__gives_up_on_what_stays_away(ledger, slept):
    outcome = run(ledger, Needy(99), terms=Terms(patience_s=14))
    assert outcome == Failed(
        "GoneError: no disk (not tried again: it was away for 14 s)", outcome.detail
    )
    assert sum(slept) == 14


def test_execute__a_stop_ends_the_wait(ledger, slept):
    asked: Callable[[], bool] = stop_after(3)
    assert run(ledger, Needy(99), terms=Terms(patience_s=1e6), should_stop=asked) == "stopped"
    assert sum(slept) < 10


def test_execute__takes_no_absent_ledger_for_an_empty_one(tmp_path):
    with pytest.raises(StorageError, match="is its disk mounted"):
        run(Ledger.open(tmp_path / "mount"))
    assert not (tmp_path / "mount").exists()


def test_execute__tells_of_damage(ledger, tmp_path, caplog):
    run(ledger, should_stop=stop_after(2))
    for state in tmp_path.glob("ledger/stages/*/checkpoints/*/state/weight.json"):
        state.write_text("{}")
    seen: list[Event] = []
    assert isinstance(run(ledger, observe=seen.append), Finished)
    words = [event.message for event in seen if event.kind == "damaged"]
    assert ["left out" in text for text in words] == [True, True, False]
    assert words[-1].endswith("/checkpoints holds no sound checkpoint: the stage begins anew.")
