"""What every executor must do, as tests to inherit, with the toy trainer to run them on.

class TestMine(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return run_mine
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from ablation.cells import Begun, Cell, Failed, Finished, PlannedStage, Waiting
from ablation.events import Event, Observe
from ablation.identity import digest
from ablation.ledger import Ledger
from ablation.pace import Pace
from ablation.protocol import Place, Trainer
from ablation.terms import Terms
from ablation.toy import Toy, ToyMask, ToyNoise, ToyScore, ToyTrainer

__all__ = [
    "Executor",
    "ExecutorContract",
    "StopFile",
    "Toy",
    "ToyMask",
    "ToyNoise",
    "ToyScore",
    "ToyTrainer",
    "ignore",
    "new_ledger",
    "paced",
    "planned",
    "stop_after",
    "toy_cell",
    "work_done",
]


class Executor(Protocol):
    """Whatever brings cells to their ends; all arguments pickle but `observe` and `stopped`."""

    def __call__(
        self,
        cells: Iterable[Cell],
        *,
        trainer: Trainer,
        ledger: Ledger,
        place: Place,
        observe: Observe,
        should_stop: Callable[[], bool],
        stopped: Callable[[], frozenset[str]] = frozenset,
        terms: Terms,
    ) -> None:
        """Bring the cells to their ends, or as far as they come before a stop.

        Cells whose first stages are `stopped` are left alone, the others are not.
        """
        ...


@dataclass(frozen=True, slots=True)
class StopFile:
    """A request to stop that lasts as long as a file: it crosses processes and pickles."""

    path: Path

    def __call__(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()


def paced(every_s: float, *, max_failures: int = 0, run: str = "test") -> Terms:
    """Terms with a fixed time between checkpoints (0: one at each step)."""
    pace = Pace(least_s=every_s, most_s=every_s)
    return Terms(run=run, pace=pace, max_failures=max_failures)


def stop_after(steps: int) -> Callable[[], bool]:
    """A request to stop that comes once a stage has done so many steps in this process.

    It relies on being asked once at the start and once after every step.
    """
    asked = count()
    return lambda: next(asked) >= steps


def ignore(event: Event) -> None:
    """An observer that looks away."""


def planned(name: str, config: Any, *, seed: int, parent: str | None = None) -> PlannedStage:
    """A stage of the toy trainer."""
    trainer = ToyTrainer()
    return PlannedStage(
        name=name,
        kind=trainer.stages()[name].kind,
        digest=digest(
            trainer=trainer.name,
            result_version=trainer.result_version,
            stage=name,
            config=config,
            seed=seed,
            data=None,
            parent=parent,
        ),
        config=config,
        seed=seed,
        data=None,
        parent=parent,
    )


def new_ledger(folder: Path) -> Ledger:
    """A ledger that is there."""
    ledger = Ledger.open(folder)
    ledger.check_writable()
    return ledger


def toy_cell(row: str, config: Toy | ToyNoise, *, seed: int = 0, **evaluate: ToyScore) -> Cell:
    """A cell of a training or of noise and its evaluations, by default one `score`."""
    name = "train" if isinstance(config, Toy) else "noise"
    first = planned(name, config, seed=seed)
    others = [
        planned(stage, settings, seed=seed, parent=first.digest)
        for stage, settings in (evaluate or {"score": ToyScore()}).items()
    ]
    return Cell(row=row, seed=seed, stages=(first, *others), reference=name == "noise")


def work_done(scratch: Path) -> Counter[str]:
    """How often each `stage step` of the toy was done, over all processes."""
    file = scratch / "work.txt"
    lines = file.read_text().splitlines() if file.exists() else ()
    return Counter(" ".join(line.split()[:2]) for line in lines)


class ExecutorContract:
    """Tests over a fixture `executor`; pytest gives `tmp_path`."""

    def test_executor__runs_all_cells(self, executor: Executor, tmp_path: Path) -> None:
        """Every stage of every cell finishes, the yardstick's too, and is journalled."""
        cells = [
            toy_cell("a", Toy(rate=0.1)),
            toy_cell("a", Toy(rate=0.1), seed=1),
            toy_cell("noise", ToyNoise()),
        ]
        ledger = _run(executor, cells, tmp_path)
        for cell in cells:
            assert all(isinstance(ledger.outcome(stage.digest), Finished) for stage in cell)
        assert [record.step for record in ledger.journal(cells[0].stages[0].digest)] == [
            *range(1, 9)
        ]
        first, second = (ledger.outcome(cell.stages[1].digest) for cell in cells[:2])
        assert first != second

    def test_executor__second_run_does_nothing(self, executor: Executor, tmp_path: Path) -> None:
        """What has ended, well or badly, is not done again."""
        cells = [toy_cell("a", Toy()), toy_cell("b", Toy(fail_at=2))]
        _run(executor, cells, tmp_path)
        before = work_done(tmp_path / "scratch")
        _run(executor, cells, tmp_path)
        assert work_done(tmp_path / "scratch") == before

    def test_executor__failure_stays_in_its_cell(self, executor: Executor, tmp_path: Path) -> None:
        """A failure is recorded with its reason; what depends on it waits, the rest finishes."""
        bad, good = toy_cell("bad", Toy(fail_at=3)), toy_cell("good", Toy())
        ledger = _run(executor, [bad, good], tmp_path)
        outcome = ledger.outcome(bad.stages[0].digest)
        assert isinstance(outcome, Failed)
        assert "asked to fail at step 3" in outcome.error
        assert "Traceback" in outcome.detail
        assert ledger.standing(bad.stages[1].digest) == Waiting()
        assert isinstance(ledger.outcome(good.stages[1].digest), Finished)

    def test_executor__failed_evaluation_stands_alone(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        """An evaluation that fails keeps neither its training nor its siblings from finishing."""
        cell = toy_cell("a", Toy(), score=ToyScore(fail_at=1), probe=ToyScore())
        ledger = _run(executor, [cell], tmp_path)
        kinds = [type(ledger.outcome(stage.digest)) for stage in cell]
        assert kinds == [Finished, Failed, Finished]

    def test_executor__goes_on_after_a_stop(self, executor: Executor, tmp_path: Path) -> None:
        """A stop leaves no outcome, only a commit; the next run ends as if there was no stop."""
        cell = toy_cell("a", Toy(rate=0.3, stop_at=3))
        ledger = _run(executor, [cell], tmp_path)
        train, score = cell
        assert isinstance(ledger.standing(train.digest), Begun)
        assert ledger.standing(score.digest) == Waiting()
        (tmp_path / "scratch" / "stop").unlink()
        _run(executor, [cell], tmp_path)
        assert work_done(tmp_path / "scratch")["train 1"] == 1
        quiet = toy_cell("a", Toy(rate=0.3))
        other = _run(executor, [quiet], tmp_path / "quiet")
        assert ledger.outcome(score.digest) == other.outcome(quiet.stages[1].digest)
        assert _metrics(ledger, train) == _metrics(other, quiet.stages[0])

    def test_executor__stops_one_cell_alone(self, executor: Executor, tmp_path: Path) -> None:
        """It commits and ends, and the others finish; the next run goes on with it."""
        one, other = toy_cell("a", Toy(steps=30, sleep_s=0.2)), toy_cell("b", Toy())
        (train, score), heard = one, {0}

        def observe(event: Event) -> None:
            if event.digest == train.digest:
                heard.add(event.step)

        ledger = _run(
            executor,
            [one, other],
            tmp_path,
            observe=observe,
            stopped=lambda: frozenset({train.digest} if max(heard) > 1 else ()),
        )
        standing = ledger.standing(train.digest)
        assert isinstance(standing, Begun)
        assert standing.step == max(heard)
        assert ledger.standing(score.digest) == Waiting()
        assert all(isinstance(ledger.outcome(stage.digest), Finished) for stage in other)
        (attempt,) = ledger.stage(train.digest).attempts()
        assert attempt.ended == "interrupted"
        _run(executor, [one], tmp_path)
        assert all(isinstance(ledger.outcome(stage.digest), Finished) for stage in one)
        done = work_done(tmp_path / "scratch")
        assert (done["train 8"], done["train 30"]) == (2, 1), "no step is done twice"

    def test_executor__later_evaluation_trains_nothing(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        """An evaluation that is added later uses the training that is there."""
        _run(executor, [toy_cell("a", Toy())], tmp_path)
        before = work_done(tmp_path / "scratch")
        cell = toy_cell("a", Toy(), score=ToyScore(), probe=ToyScore(steps=1))
        ledger = _run(executor, [cell], tmp_path)
        assert isinstance(ledger.outcome(cell.stages[2].digest), Finished)
        assert work_done(tmp_path / "scratch") - before == Counter({"score 1": 1})

    def test_executor__shared_stage_runs_once(self, executor: Executor, tmp_path: Path) -> None:
        """Two rows with the same training train once."""
        cells = [toy_cell("a", Toy()), toy_cell("b", Toy(), probe=ToyScore())]
        _run(executor, cells, tmp_path)
        assert work_done(tmp_path / "scratch")["train 1"] == 1


def _run(
    executor: Executor,
    cells: Iterable[Cell],
    folder: Path,
    *,
    observe: Observe = ignore,
    stopped: Callable[[], frozenset[str]] = frozenset,
) -> Ledger:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    ledger = new_ledger(folder / "ledger")
    executor(
        cells,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(data={"scratch": scratch}),
        observe=observe,
        should_stop=StopFile(scratch / "stop"),
        stopped=stopped,
        terms=paced(0),
    )
    return ledger


def _metrics(ledger: Ledger, stage: PlannedStage) -> list[tuple[int, Mapping[str, float]]]:
    return [(record.step, record.metrics) for record in ledger.journal(stage.digest)]
