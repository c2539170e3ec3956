"""Two writers of one stage at the same time: nothing that either committed is lost."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from ablation.cells import Finished
from ablation.commits import Restored
from ablation.journal import Record
from ablation.ledger import Ledger
from ablation.stage_writer import StageWriter
from ablation.storage import StorageError

DIGEST = "ab" * 8
STEPS = 14


@dataclass
class Driver:
    """Does the steps of a stage; its clock is its own, so its files differ from another's."""

    ledger: Ledger
    scratch: Path
    random: Random
    step: int = 0
    writer: StageWriter = field(init=False)
    pending: list[Record] = field(default_factory=list)
    done: bool = False

    def begin(self) -> None:
        """As a process that died, or is new: all that was not committed is forgotten."""
        restored: Restored | None = self.ledger.stage(DIGEST).restore(self.scratch / "into")
        self.writer = self.ledger.writer(DIGEST, after=restored)
        self.step, self.pending = restored.step if restored else 0, []
        if restored:
            assert json.loads((restored.folder / "state.json").read_text())[0] == self.step
            assert steps(restored.records) == [*range(1, self.step + 1)]

    def saved(self) -> Path:
        folder = self.scratch / "saved"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps([self.step, self.random.random()]))
        return folder

    def go_on(self) -> None:
        to = min(self.step + self.random.choice([1, 1, 2, 5]), STEPS)
        while self.step < to:
            self.step += 1
            time_ms = self.random.randrange(1, 10**6)
            self.pending.append(Record(self.step, time_ms, {"loss": 1 / self.step}))
        if self.step < STEPS:
            self.writer.commit(self.step, STEPS, folder=self.saved(), records=self.pending)
        else:
            self.writer.finish({"x": float("nan")}, export=self.saved(), records=self.pending)
            self.done = True
        self.pending = []


def steps(records) -> list[int]:
    return [record.step for record in records]


def check(ledger: Ledger, into: Path, newest: int) -> None:
    stage, done = ledger.stage(DIGEST), isinstance(ledger.outcome(DIGEST), Finished)
    assert steps(ledger.journal(DIGEST)) == [*range(1, (STEPS if done else newest) + 1)]
    if done:
        ledger.artifacts(DIGEST, into / "artifacts")
    else:
        restored = stage.restore(into / "check")
        assert (restored.step if restored else 0) == newest


@pytest.mark.parametrize("seed", range(30))
def test_writers__any_order_of_two(tmp_path, seed):
    random, ledger = Random(seed), Ledger.open(tmp_path / "ledger")
    drivers = [Driver(ledger, tmp_path / name, Random(f"{name}{seed}")) for name in "ab"]
    drivers[0].begin()
    begun, newest = {0}, 0
    while not all(driver.done for driver in drivers):
        index = random.choice([i for i in (0, 1) if not drivers[i].done])
        driver = drivers[index]
        if index not in begun or random.random() < 0.1:
            driver.begin()
            begun.add(index)
        driver.go_on()
        newest = max(newest, driver.step)
        check(ledger, tmp_path, newest)
    assert isinstance(ledger.outcome(DIGEST), Finished)
    ledger.writer(DIGEST).tidy()
    folder = tmp_path / "ledger" / "stages" / DIGEST
    assert sorted(path.name for path in folder.iterdir()) == [
        "artifacts", "journal", "outcome.json",
    ]  # fmt: skip
    assert len(list((folder / "journal").iterdir())) == 1
    assert len(list((folder / "artifacts").iterdir())) == 1


def test_writers__a_late_commit_of_few_steps_leaves_the_longer_journal(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger")
    far, near = (Driver(ledger, tmp_path / name, Random(name)) for name in "ab")
    for driver, to in ((far, 10), (near, 3)):
        driver.writer = ledger.writer(DIGEST)
        driver.step = to
        records = [Record(step, to, {}) for step in range(1, to + 1)]
        driver.writer.commit(to, STEPS, folder=driver.saved(), records=records)
    assert steps(ledger.journal(DIGEST)) == [*range(1, 11)]
    far.step = 11
    far.writer.finish({"x": 1.0}, export=far.saved(), records=[Record(11, 1, {})])
    assert steps(ledger.journal(DIGEST)) == [*range(1, 12)]
    with pytest.raises(StorageError, match="finished already"):
        near.writer.finish({"x": 2.0}, export=near.saved(), records=())
    assert steps(ledger.journal(DIGEST)) == [*range(1, 12)]


def test_writers__the_end_of_another_while_preparing_stands(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger")
    first, second = (Driver(ledger, tmp_path / name, Random(name)) for name in "ab")
    for driver in (first, second):
        driver.begin()
        driver.step = 1
    record = [Record(1, 7, {"loss": 1.0})]

    @dataclass(frozen=True)
    class Overtaken(type(ledger.storage)):
        """Lets the second writer finish when the first one uploads its artifacts."""

        def upload(self, source, path, *, check=False):
            second.writer.finish({"x": 1.0}, export=second.saved(), records=record)
            return super().upload(source, path, check=check)

    storage = ledger.storage
    slow = Overtaken(files=storage.files, root=storage.root, uri=storage.uri, local=storage.local)
    writer = Ledger(slow).writer(DIGEST)
    ended = writer.finish({"x": 1.0}, export=first.saved(), records=[Record(1, 8, {})])
    assert ended == ledger.outcome(DIGEST)
    assert [r.time_ms for r in ledger.journal(DIGEST)] == [7]
    exported = ledger.artifacts(DIGEST, tmp_path / "into") / "state.json"
    assert exported.read_text() == (second.scratch / "saved/state.json").read_text()


def test_writers__one_that_lives_writes_again_what_another_deleted(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger")
    first, second = (Driver(ledger, tmp_path / name, Random(name)) for name in "ab")

    def commit(driver: Driver, to: int) -> None:
        records = [Record(step, 7, {}) for step in range(driver.step + 1, to + 1)]
        driver.step = to
        driver.writer.commit(to, 99, folder=driver.saved(), records=records)

    first.begin()
    commit(first, 8)
    commit(first, 10)
    second.begin()
    for to in (11, 12, 13, 14):
        commit(second, to)
    journal = tmp_path / "ledger" / "stages" / DIGEST / "journal"
    assert not list(journal.glob("1-8-*"))
    commit(first, 15)
    assert list(journal.glob("1-8-*"))
    assert steps(ledger.journal(DIGEST)) == [*range(1, 16)]
    check(ledger, tmp_path, 15)
