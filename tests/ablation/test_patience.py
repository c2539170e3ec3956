"""A storage that refuses for a while: a full disk, a server that is down, a network that is cut."""

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ablation import patience
from ablation.ledger import Ledger
from ablation.storage import Storage, StorageError


class Time:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now, self.sleeps = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(patience, "time", time)
    return time


class Refusing:
    """A file system that refuses so many requests; then it does as it is told."""

    def __init__(self, files: Any, times: int) -> None:
        self.files, self.times, self.asked = files, times, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.files, name)

        def ask(*args: Any, **options: Any) -> Any:
            self.asked += 1
            if self.asked <= self.times:
                raise OSError("no route to host")
            return method(*args, **options)

        return ask


class FullSink:
    """A file on a disk with room for so many bytes."""

    def __init__(self, stream: Any, disk: "FullDisk") -> None:
        self.stream, self.disk = stream, disk

    def __enter__(self) -> "FullSink":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, content: bytes) -> None:
        fits = content[: self.disk.room]
        self.disk.room -= len(fits)
        self.stream.write(fits)
        if len(fits) < len(content):
            raise OSError(errno.ENOSPC, "No space left on device")


class FullDisk:
    """A file system with little room left."""

    def __init__(self, files: Any, room: int) -> None:
        self.files, self.room = files, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def open_output_stream(self, path: str) -> FullSink:
        return FullSink(self.files.open_output_stream(path), self)


def storage_of(
    folder: Path, wrap: Callable[[Any], Any], *, local: bool, patience_s: float, said: list[str]
) -> Storage:
    storage = Storage(
        files=wrap(fs.LocalFileSystem()),
        root=str(folder),
        uri="the://store",
        local=folder if local else None,
    )
    return storage.patient(patience_s, said.append)


def refusing(folder: Path, times: int, *, patience_s: float = 3600.0, said: list[str]) -> Storage:
    return storage_of(
        folder,
        lambda files: Refusing(files, times),
        local=True,
        patience_s=patience_s,
        said=said,
    )


@pytest.mark.parametrize("times", [0, 1, 3, 4, 5, 12])
def test_patient__asks_again_and_says_so_once(tmp_path, clock, times):
    (tmp_path / "a").write_bytes(b"one")
    said: list[str] = []
    storage = refusing(tmp_path, times, said=said)
    assert storage.read("a") == b"one"
    assert len(clock.sleeps) == times
    if times <= 3:
        assert said == []
    else:
        waits, answers = said
        assert waits.startswith("Could not read the://store/a: no route to host. Waiting")
        assert answers == f"The storage answers again after {clock.now:.0f} s."


def test_patient__a_refusal_of_a_second_is_not_worth_a_word(tmp_path, clock):
    said: list[str] = []
    with pytest.raises(StorageError):
        refusing(tmp_path, 99, patience_s=1.0, said=said).read("a")
    assert said == []
    with pytest.raises(StorageError):
        refusing(tmp_path, 99, patience_s=3.0, said=said).read("a")
    assert len(said) == 1


@pytest.mark.parametrize("patience_s", [0.0, 0.1, 1.0, 60.0, 3600.0])
def test_patient__gives_up_in_time(tmp_path, clock, patience_s):
    said: list[str] = []
    storage = refusing(tmp_path, 10**9, patience_s=patience_s, said=said)
    with pytest.raises(StorageError, match="Could not list the://store/a: no route to host") as got:
        storage.names("a")
    assert isinstance(got.value.__cause__, OSError)
    assert clock.now == pytest.approx(patience_s)
    assert storage.files.asked == len(clock.sleeps) + 1, "the last word is the storage's"
    assert len(said) == (patience_s > 2)


def test_patient__asks_ever_more_rarely_but_not_too_rarely(tmp_path, clock):
    """A server that comes back is not stormed, and not left alone for minutes either."""
    with pytest.raises(StorageError):
        refusing(tmp_path, 10**9, patience_s=600.0, said=[]).read("a")
    *waits, _ = clock.sleeps
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.25, 16.0)


def test_patient__every_request_has_its_own_patience(tmp_path, clock):
    said: list[str] = []
    storage = refusing(tmp_path, 5, patience_s=10.0, said=said)
    assert storage.read("a") is None
    storage.files.asked = 0
    assert storage.names("a") == []
    assert len(said) == 4


@pytest.mark.parametrize(
    "verb", ["read", "write", "upload", "download", "measure", "names", "remove"]
)
@pytest.mark.parametrize("local", [True, False])
def test_patient__is_so_with_every_request(tmp_path, clock, verb, local):
    folder, source, said = tmp_path / "store", tmp_path / "source", list[str]()
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "a").write_bytes(b"old")
    source.write_bytes(b"new")
    times = 12  # a request may ask twice

    def wrap(files: Any) -> Any:
        return Refusing(files, times)

    storage = storage_of(folder, wrap, local=local, patience_s=600.0, said=said)
    requests: dict[str, Callable[[], Any]] = {
        "read": lambda: storage.read("b/a") == b"old",
        "write": lambda: storage.write("b/a", b"new").size == 3,
        "upload": lambda: storage.upload(source, "b/a").size == 3,
        "download": lambda: getattr(storage.download("b/a", tmp_path / "into"), "size", 0) == 3,
        "measure": lambda: getattr(storage.measure("b/a"), "size", 0) == 3,
        "names": lambda: storage.names("b") == ["a"],
        "remove": lambda: storage.remove("b/a") is None,
    }
    assert requests[verb]()
    assert clock.sleeps
    assert "Waiting for the storage" in said[0]
    left = {"remove": [], "write": [b"new"], "upload": [b"new"]}.get(verb, [b"old"])
    assert [file.read_bytes() for file in (folder / "b").iterdir()] == left


def test_patient__absence_is_no_refusal(tmp_path, clock):
    storage = refusing(tmp_path, 0, said=[])
    assert storage.read("a") is None
    assert storage.measure("a") is None
    assert storage.names("a") == []
    storage.remove("a")
    assert clock.sleeps == []


def test_patient__is_the_same_storage(tmp_path, clock):
    storage = Storage.open(tmp_path)
    assert storage.patient(60, print) == storage
    with pytest.raises(StorageError):
        Storage(files=Refusing(fs.LocalFileSystem(), 1), root="/", uri="x").read("a")
    assert clock.sleeps == []
    ledger = pickle.loads(pickle.dumps(Ledger(storage)))
    ledger.storage.write("a", b"1")
    assert storage.read("a") == b"1"


@pytest.mark.parametrize("durable", [True, False])
def test_write__leaves_nothing_on_a_full_disk(tmp_path, clock, durable):
    folder, said = tmp_path / "store", list[str]()
    folder.mkdir()
    (folder / "a").write_bytes(b"old")

    def wrap(files: Any) -> Any:
        return FullDisk(files, room=10)

    storage = storage_of(folder, wrap, local=True, patience_s=60.0, said=said)
    with pytest.raises(StorageError, match=r"Could not write the://store/a: .*No space left"):
        storage.write("a", b"x" * 11, durable=durable)
    assert [file.name for file in folder.iterdir()] == ["a"]
    assert (folder / "a").read_bytes() == b"old"
    assert len(clock.sleeps) > 3
    assert len(said) == 1


def test_write__goes_on_when_there_is_room_again(tmp_path, clock):
    folder, said = tmp_path / "store", list[str]()
    disk = FullDisk(fs.LocalFileSystem(), room=10)
    storage = storage_of(folder, lambda files: disk, local=True, patience_s=60.0, said=said)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        assert [*folder.iterdir()] == [], "a full disk has no room for leftovers"
        if clock.now > 20:
            disk.room = 100

    clock.sleep = sleep
    storage.write("a", b"x" * 20)
    assert (folder / "a").read_bytes() == b"x" * 20
    assert [file.name for file in folder.iterdir()] == ["a"]
    assert [text.split()[0] for text in said] == ["Could", "The"]


def test_write__an_interrupt_leaves_nothing_either(tmp_path):
    class Interrupted(FullDisk):
        def open_output_stream(self, path: str) -> Any:
            self.files.open_output_stream(path).close()
            raise KeyboardInterrupt

    storage = storage_of(
        tmp_path, lambda files: Interrupted(files, 0), local=True, patience_s=9.0, said=[]
    )
    with pytest.raises(KeyboardInterrupt):
        storage.write("a", b"x")
    assert [*tmp_path.iterdir()] == []


def test_write__a_commit_on_a_full_disk_waits_and_is_then_whole(tmp_path, clock):
    """The whole ledger: nothing is committed in halves, and what waited is there in the end."""
    disk = FullDisk(fs.LocalFileSystem(), room=10**6)
    folder = tmp_path / "store"
    storage = storage_of(folder, lambda files: disk, local=True, patience_s=60.0, said=[])
    ledger = Ledger(storage)
    stage, writer, state = ledger.stage("ab" * 8), ledger.writer("ab" * 8), tmp_path / "state"
    state.mkdir()
    (state / "weights").write_bytes(b"x" * 1000)
    writer.commit(1, 3, folder=state, records=())
    disk.room = 500
    with pytest.raises(StorageError, match="No space left"):
        writer.commit(2, 3, folder=state, records=())
    assert stage.standing().step == 1  # type: ignore[union-attr]
    restored = stage.restore(tmp_path / "into")
    assert restored is not None
    assert (restored.folder / "weights").stat().st_size == 1000

    def sleep(seconds: float) -> None:
        clock.now += seconds
        disk.room = 10**6

    disk.room, clock.sleep = 500, sleep
    writer.commit(3, 3, folder=state, records=())
    assert stage.standing().step == 3  # type: ignore[union-attr]
    assert not [*folder.rglob("*.tmp")]
