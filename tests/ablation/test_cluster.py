from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
import ray

from ablation.cells import Begun, Cell, Failed, Finished
from ablation.doctor import diagnose
from ablation.events import Event, Observe
from ablation.executors.cluster import run_cluster
from ablation.executors.connection import connected
from ablation.layout import Layout, PlaceError
from ablation.lease import Lease, acquire
from ablation.ledger import Ledger
from ablation.profile import Profile
from ablation.protocol import Place, Trainer
from ablation.provenance import now_ms
from ablation.terms import Terms
from ablation.testing import (
    Executor,
    ExecutorContract,
    Toy,
    ToyScore,
    ToyTrainer,
    new_ledger,
    paced,
    toy_cell,
)

pytestmark = [
    pytest.mark.cluster,
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class TestCluster(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return _executor(Layout())


def _executor(layout: Layout) -> Executor:
    def execute(
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
        run_cluster(
            list(cells),
            trainer=trainer,
            ledger=ledger,
            place=place,
            layout=replace(layout, gpus_per_worker=0),
            observe=observe,
            should_stop=should_stop,
            stopped=stopped,
            terms=terms,
        )

    return execute


def test_run_cluster__tells_the_driver(tmp_path):
    heard: list[Event] = []
    cell = toy_cell("a", Toy())
    _run([cell], tmp_path, Layout(), heard.append)
    kinds = [(event.name, event.kind) for event in heard if event.kind != "progress"]
    assert kinds[0] == ("train", "begun")
    assert kinds[-1] == ("score", "finished")
    records = [record.step for event in heard for record in event.records]
    assert records[:8] == [*range(1, 9)]


def test_run_cluster__worker_group(tmp_path):
    good = toy_cell("a", Toy(rate=0.2), score=ToyScore(fail_at=1), probe=ToyScore())
    cells = [good, toy_cell("bad", Toy(fail_at=2))]
    lost = _run(cells, tmp_path / "two", Layout(workers=2))
    two, one = Ledger.open(tmp_path / "two"), Ledger.open(tmp_path / "one")
    _run(cells[:1], tmp_path / "one", Layout())
    kinds = [type(two.outcome(stage.digest)) for stage in good]
    assert kinds == [Finished, Failed, Finished], "a failure keeps no sibling from its end"
    for stage in (good.stages[0], good.stages[2]):
        assert two.outcome(stage.digest) == one.outcome(stage.digest)
    assert isinstance(two.outcome(cells[1].stages[0].digest), Failed)
    assert lost == {}


def test_run_cluster__stops_the_group_of_one_cell_alone(tmp_path):
    one, other = toy_cell("a", Toy(steps=60, sleep_s=0.2)), toy_cell("b", Toy())
    digest, heard = one.stages[0].digest, {0}

    def observe(event: Event) -> None:
        if event.digest == digest:
            heard.add(event.step)

    def stopped() -> frozenset[str]:
        return frozenset({digest} if max(heard) > 1 else ())

    assert _run([one, other], tmp_path, Layout(workers=2), observe, stopped=stopped) == {}
    ledger = Ledger.open(tmp_path)
    assert ledger.standing(digest) == Begun(max(heard), 60)
    (attempt,) = ledger.stage(digest).attempts()
    assert (attempt.workers, attempt.ended) == (2, "interrupted")
    assert all(isinstance(ledger.outcome(stage.digest), Finished) for stage in other)


def test_run_cluster__cell_larger_than_cluster(tmp_path):
    with (
        pytest.raises(PlaceError, match=r"needs 3 worker\(s\) of 1 CPUs.*2 CPUs and 0 GPUs"),
        connected(Layout(workers=3)),
    ):
        raise AssertionError("nothing may run")


@pytest.mark.parametrize("raised", [Exception("timed out during startup."), ValueError("odd")])
@pytest.mark.parametrize(
    ("address", "words"),
    [("local", "could not start on this machine"), ("auto", "which lets this process in")],
)
def test_connected__says_why_there_is_no_cluster(address, words, raised, monkeypatch):
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(PlaceError, match=f"{words}.*: {str(raised).rstrip('.')}[.] "),
        connected(Layout(address=address)),
    ):
        raise AssertionError("nothing may run")


def test_connected__knocks_before_ray_tries_for_minutes(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(PlaceError, match=r"'127\.0\.0\.1:1': .*refused"),
        connected(Layout(address="127.0.0.1:1")),
    ):
        raise AssertionError("nothing may run")


def test_run_cluster__begins_with_the_workers_that_there_is_room_for(tmp_path):
    cell = toy_cell("a", Toy(batch=12))
    assert _run([cell], tmp_path, Layout(workers=(1, 4))) == {}
    ledger = Ledger.open(tmp_path)
    for stage in cell:
        (attempt,) = ledger.stage(stage.digest).attempts()
        assert (attempt.workers, attempt.ended) == (2, "finished")


def test_connected__settles_the_number_of_gpus():
    with connected(Layout()) as layout:
        assert layout.gpus_per_worker == 0


def test_run_cluster__lost_worker_is_replaced(tmp_path):
    dies, lives = toy_cell("dies", Toy(die_at=3)), toy_cell("lives", Toy(), probe=ToyScore())
    lost = _run([dies, lives], tmp_path, Layout())
    ledger = Ledger.open(tmp_path)
    assert lost == {}
    assert all(isinstance(ledger.outcome(stage.digest), Finished) for stage in (*dies, *lives))
    first, second = ledger.stage(dies.stages[0].digest).attempts()
    assert (first.ended, second.ended) == ("lost", "finished")


def test_run_cluster__takes_up_what_another_driver_leaves_while_it_waits(tmp_path):
    """Between two looks, so that nothing has moved: the stage is free all the same."""
    cell = toy_cell("a", Toy())
    stage = new_ledger(tmp_path).stage(cell.stages[0].digest)
    held = acquire(stage.storage, stage.at("lease"), run="other", now_ms=now_ms)
    assert isinstance(held, Lease)
    busy: list[Event] = []

    def observe(event: Event) -> None:
        if event.kind == "busy":
            busy.append(event)
            if len(busy) == 2:
                held.release()

    assert _run([cell], tmp_path, Layout(), observe) == {}
    assert all(isinstance(Ledger.open(tmp_path).outcome(s.digest), Finished) for s in cell)
    assert len(busy) == 2


def _run(cells, folder, layout, observe=lambda event: None, **more):
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return run_cluster(
        cells,
        trainer=ToyTrainer(),
        ledger=new_ledger(folder),
        place=Place(data={"scratch": scratch}),
        layout=replace(layout, gpus_per_worker=0),
        observe=observe,
        terms=paced(0),
        **more,
    )


def test_doctor__of_a_place_where_all_is_well_but_the_data(tmp_path):
    """It leaves the storage as it was."""
    data = {"here": str(tmp_path), "gone": str(tmp_path / "gone")}
    place = Profile(storage=str(tmp_path / "results"), data=data, gpus_per_worker=0, concurrency=6)
    findings = [*diagnose(place, trainer="toy")]
    assert [(finding.part.split()[0], bool(finding.remedy)) for finding in findings] == [
        ("this", False),
        ("storage", False),
        ("MLflow", False),
        ("cluster", False),
        ("node", True),
    ]
    assert findings[3].found.endswith(
        "room for 2 cell(s) at a time of 1 worker(s); concurrency is 6"
    )
    assert findings[-1].found == f"gone is not at {tmp_path / 'gone'}"
    assert not [*(tmp_path / "results").iterdir()]
