import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ablation.journal import Record
from ablation.patience import Patience
from ablation.saving import Saving

RECORDS = (Record(1, 5, {"loss": 1.0}),)


@dataclass
class Store:
    """What is committed, when `gate` is open; it refuses as `error` says."""

    error: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    committed: list[Any] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def commit(self, step, total, /, *, folder, records) -> None:
        self.folders.append(folder)
        self.begun.set()
        assert self.gate.wait(60)
        if self.error:
            raise self.error
        self.committed.append((step, total, (folder / "state").read_text(), records))

    def tell(self, step, total, records) -> None:
        self.told.append((step, total, records))

    def saving(self, *, opened: bool = True) -> Saving:
        if opened:
            self.gate.set()
        return Saving(commit=self.commit, committed=self.tell, left=self.left.set)


def state(text: str):
    return lambda folder: (folder / "state").write_text(text)


def save(saving: Saving, step: int, write=None) -> None:
    saving.save(step, 9, write=write or state(f"state {step}"), records=RECORDS)


def test_saving__is_busy_until_the_commit_is_over():
    store = Store()
    with store.saving(opened=False) as saving:
        assert not saving.busy
        save(saving, 1)
        assert store.begun.wait(60)
        assert saving.busy
        store.gate.set()
        saving.wait()
        assert not saving.busy


def test_saving__asking_whether_it_is_busy_raises_what_went_wrong():
    store = Store(error=OSError("full"))
    saving = store.saving()
    save(saving, 1)
    with pytest.raises(OSError, match="full"):  # noqa: PT012 - by then it may be over already
        while saving.busy:
            time.sleep(0.01)


def test_saving__commits_what_was_written_then_and_tells_of_it():
    store, live = Store(), ["before"]
    with store.saving(opened=False) as saving:
        save(saving, 1, lambda folder: (folder / "state").write_text(live[0]))
        live[0] = "after"
        assert store.committed == store.told == []
        store.gate.set()
    assert store.committed == [(1, 9, "before", RECORDS)]
    assert store.told == [(1, 9, RECORDS)]


def test_saving__does_not_wait_for_the_storage():
    store = Store()
    with store.saving(opened=False) as saving:
        save(saving, 1)
        assert store.begun.wait(60)
        assert store.committed == []
        store.gate.set()
        saving.wait()
        assert len(store.committed) == 1


def test_saving__one_at_a_time_and_in_order():
    store = Store()
    with store.saving(opened=False) as saving:
        save(saving, 1)
        threading.Timer(0.05, store.gate.set).start()

        def write(folder: Path) -> None:
            assert len(store.committed) == 1, "the first must be safe before the second is written"
            state("second")(folder)

        save(saving, 2, write)
        save(saving, 3)
    assert [step for step, *_ in store.committed] == [1, 2, 3]
    assert [step for step, *_ in store.told] == [1, 2, 3]


def test_saving__takes_the_records_as_they_are():
    store, records = Store(), [*RECORDS]
    with store.saving(opened=False) as saving:
        saving.save(1, 9, write=state("x"), records=records)
        records.clear()
        store.gate.set()
    assert store.committed[0][-1] == store.told[0][-1] == RECORDS


@pytest.mark.parametrize("call", ["save", "wait", "end"])
def test_saving__raises_what_went_wrong_at_the_next_call(call):
    store = Store(error=ConnectionError("cut off"))

    def work() -> None:
        with store.saving() as saving:
            save(saving, 1)
            if call == "save":
                save(saving, 2)
            elif call == "wait":
                saving.wait()

    with pytest.raises(ConnectionError, match="cut off"):
        work()
    assert store.told == []
    assert len(store.folders) == 1


def test_saving__raises_it_once():
    store = Store(error=ConnectionError("cut off"))
    with store.saving() as saving:
        save(saving, 1)
        with pytest.raises(ConnectionError):
            saving.wait()
        saving.wait()
        store.error = None
        save(saving, 2)
    assert [step for step, *_ in store.committed] == [2]


def test_saving__another_error_is_not_hidden_by_it(caplog):
    store = Store(error=ConnectionError("cut off"))

    def work() -> None:
        with store.saving() as saving:
            save(saving, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "was not saved: cut off" in caplog.text


def test_saving__an_error_lets_what_is_under_way_finish():
    store = Store()

    def work() -> None:
        with store.saving(opened=False) as saving:
            save(saving, 1)
            threading.Timer(0.05, store.gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [step for step, *_ in store.committed] == [1]


def test_saving__an_interrupt_while_waiting_lets_it_finish_too(monkeypatch):
    """What was waited for is under way all the same, and must end before the lease does."""
    store, interrupted = Store(), False

    def work() -> None:
        with store.saving(opened=False) as saving:
            save(saving, 1)
            assert saving._under_way is not None
            exception = saving._under_way.exception

            def interrupt(timeout: float | None = None) -> BaseException | None:
                nonlocal interrupted
                if not interrupted:
                    interrupted = True
                    threading.Timer(0.05, store.gate.set).start()
                    raise KeyboardInterrupt
                return exception(timeout)

            monkeypatch.setattr(saving._under_way, "exception", interrupt)
            saving.wait()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [step for step, *_ in store.committed] == [1]


@pytest.mark.parametrize("error", [None, ConnectionError("cut off")])
def test_saving__leaves_no_folders(error):
    store = Store(error=error)
    with store.saving() as saving:
        save(saving, 1)
        try:
            saving.wait()
        except ConnectionError:
            assert error
    assert store.folders
    assert not any(folder.exists() for folder in store.folders)


def test_saving__a_state_that_cannot_be_written_is_not_committed():
    store, seen = Store(), []

    def refuse(folder: Path) -> None:
        seen.append(folder)
        raise OSError("No space left on device")

    with store.saving() as saving, pytest.raises(OSError, match="No space"):
        save(saving, 1, refuse)
    assert store.committed == []
    assert not seen[0].exists()


@pytest.fixture
def hasty(monkeypatch) -> None:
    monkeypatch.setattr("ablation.saving.BRIEF", Patience(0.05, print))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_saving__an_interrupt_waits_for_no_storage_and_says_what_it_leaves(hasty, error, caplog):
    store = Store()

    def work() -> None:
        with store.saving(opened=False) as saving:
            save(saving, 1)
            raise error

    with pytest.raises(error):
        work()
    assert store.left.is_set()
    assert store.committed == []
    assert "is still being written" in caplog.text
    store.gate.set()


def test_saving__an_error_waits_as_long_as_it_takes(hasty):
    store = Store()

    def work() -> None:
        with store.saving(opened=False) as saving:
            save(saving, 1)
            threading.Timer(0.3, store.gate.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert [step for step, *_ in store.committed] == [1]
    assert not store.left.is_set()


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_saving__an_interrupt_while_the_block_ends_says_what_it_leaves(error, monkeypatch):
    store = Store()
    saving = store.saving(opened=False)
    save(saving, 1)
    under_way = saving._under_way

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablation.saving.wait", interrupt)
    monkeypatch.setattr(under_way, "exception", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saving.__exit__(error and type(error), error, None)
    assert store.left.is_set()
    store.gate.set()


@pytest.mark.parametrize("error", [None, OSError("full"), TimeoutError("slow")])
def test_saving__an_interrupt_leaves_nothing_that_is_over(error, caplog):
    store = Store(error=error)

    def work() -> None:
        with store.saving() as saving:
            save(saving, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not store.left.is_set()
    assert ("was not saved" in caplog.text) is (error is not None)


STUCK = """
import threading
from ablation.saving import Saving
saving = Saving(commit=lambda *_, **__: threading.Event().wait(600), committed=print, left=print)
saving.save(1, 1, write=lambda folder: None, records=())
print("saving", flush=True)
"""


def test_saving__keeps_no_process_from_its_end():
    """One that was told twice to end must not wait for a storage that is down."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "saving\n")
    assert time.monotonic() - begun < 60
