"""A writer that dies at any single operation of the storage loses at most its last commit."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from ablation.cells import Begun, Finished, Waiting
from ablation.execute import execute, never
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.storage import Storage, StorageError
from ablation.testing import Toy, ToyTrainer, ignore, new_ledger, paced, planned, stop_after

STAGE = planned("train", Toy(steps=4, rate=0.3), seed=0)
SHORT = planned("train", Toy(steps=3, rate=0.3), seed=0)


class CrashError(Exception):
    """The process ends here."""


class Faults:
    """Counts the operations that change something and spoils the `at`th, as `mode` says."""

    def __init__(self, at: int, mode: str) -> None:
        self.at, self.mode, self.count, self.fired = at, mode, 0, False

    def due(self) -> bool:
        self.count += 1
        self.fired = self.fired or self.count == self.at
        return self.count == self.at

    def around(self, operation) -> None:
        if self.due():
            raise CrashError
        operation()

    def stream(self, stream) -> "Sink":
        due = self.due()
        if due and self.mode == "before":
            stream.close()
            raise CrashError
        return Sink(stream, self.mode if due else "")


class Sink:
    """A file to write that crashes, or forgets the last half, when it is closed."""

    closed = False

    def __init__(self, stream, mode: str) -> None:
        self.stream, self.mode, self.content = stream, mode, b""

    def write(self, content) -> int:
        self.content += bytes(content)
        return len(content)

    def close(self) -> None:
        self.closed = True
        half = self.mode in ("half", "silent")
        self.stream.write(self.content[: len(self.content) // 2] if half else self.content)
        self.stream.close()
        if self.mode == "half":
            raise CrashError

    def flush(self) -> None: ...
    def writable(self) -> bool:
        return True


class Faulty(fs.FileSystemHandler):
    """A file system with faults."""

    def __init__(self, files, faults: Faults) -> None:
        self.files, self.faults = files, faults

    def get_type_name(self):
        return "faulty"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        return self.files.get_file_info(paths)

    def get_file_info_selector(self, selector):
        return self.files.get_file_info(selector)

    def create_dir(self, path, recursive):
        self.files.create_dir(path, recursive=recursive)

    def delete_dir(self, path):
        self.faults.around(lambda: self.files.delete_dir(path))

    def delete_file(self, path):
        self.faults.around(lambda: self.files.delete_file(path))

    def move(self, src, dest):
        self.faults.around(lambda: self.files.move(src, dest))

    def open_input_stream(self, path):
        return self.files.open_input_stream(path)

    def open_output_stream(self, path, metadata):
        return pa.PythonFile(self.faults.stream(self.files.open_output_stream(path)), mode="w")

    def delete_dir_contents(self, path, missing_dir_ok=False):
        raise AssertionError

    delete_root_dir_contents = copy_file = open_input_file = open_append_stream = (
        delete_dir_contents
    )


def faulty_ledger(folder: Path, faults: Faults, *, local: bool) -> Ledger:
    handler = Faulty(fs.LocalFileSystem(), faults)
    new_ledger(folder)
    files = fs.PyFileSystem(handler)
    where = folder if local else None
    return Ledger(Storage(files=files, root=str(folder), uri=str(folder), local=where))


def run(ledger: Ledger, observe=ignore, stage=STAGE, should_stop=never, **options):
    return execute(
        stage,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=options.pop("place", Place()),
        observe=observe,
        should_stop=should_stop,
        terms=paced(0.0),
        origin={"host": "here"},
        now_ms=lambda: 5,
        **options,
    )


def metrics(ledger: Ledger, stage=STAGE):
    return [(record.step, record.metrics) for record in ledger.journal(stage.digest)]


def weights(ledger: Ledger, into: Path) -> str:
    return (ledger.artifacts(SHORT.digest, into) / "state" / "weight.json").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    ledger = new_ledger(tmp_path_factory.mktemp("undisturbed"))
    run(ledger)
    run(ledger, stage=SHORT)
    return ledger


def check_readable(ledger: Ledger, into: Path, *, committed: int) -> None:
    """The last committed state is there, or the one whose commit the crash cut off."""
    stage = ledger.stage(SHORT.digest)
    restored = stage.restore(into)
    step = restored.step if restored else 0
    assert step in (committed, committed + 1)
    assert [s for s, _ in metrics(ledger, SHORT)] == [*range(1, step + 1)]
    assert ledger.standing(SHORT.digest) == (Begun(step, 3) if step else Waiting())


@pytest.mark.parametrize("local", [True, False], ids=["local", "object store"])
@pytest.mark.parametrize("mode", ["before", "half", "silent"])
def test_commit__crash_at_any_operation(tmp_path, undisturbed, mode, local, monkeypatch):
    monkeypatch.setattr("ablation.lease.EXPIRY_S", 0.0)  # for claims that were cut in half
    for at in range(1, 100):
        folder, faults, seen = tmp_path / str(at), Faults(at, mode), []
        folder.mkdir()
        try:
            run(faulty_ledger(folder, faults, local=local), observe=seen.append, stage=SHORT)
        except (CrashError, StorageError):
            assert faults.fired
        if not faults.fired:
            break
        ledger = faulty_ledger(folder, Faults(0, ""), local=local)
        if ledger.outcome(SHORT.digest) is None:
            last = max((event.step for event in seen if event.kind == "committed"), default=0)
            check_readable(ledger, tmp_path / "into", committed=last)
        assert isinstance(run(ledger, stage=SHORT), Finished)
        assert ledger.outcome(SHORT.digest) == undisturbed.outcome(SHORT.digest)
        assert metrics(ledger, SHORT) == metrics(undisturbed, SHORT)
        assert weights(ledger, tmp_path / "into") == weights(undisturbed, tmp_path / "into")
        assert not (folder / "stages" / SHORT.digest / "checkpoints").exists()
    assert 20 < at < 99


def test_ledger__reader_survives_a_writer_that_goes_on(tmp_path):
    """Between listing and reading, the writer may replace the commit that was listed."""
    ledger, stage = new_ledger(tmp_path), planned("train", Toy(steps=9), seed=0)
    run(ledger, stage=stage, should_stop=stop_after(2))
    faults = Faults(0, "")
    handler = Overtaken(fs.LocalFileSystem(), faults)
    handler.overtake = lambda: run(ledger, stage=stage, should_stop=stop_after(3))
    storage = Storage(files=fs.PyFileSystem(handler), root=str(tmp_path), uri="far")
    steps = [record.step for record in Ledger(storage).journal(stage.digest)]
    assert steps == [1, 2, 3, 4, 5]


class Overtaken(Faulty):
    """Lets a writer go on before the first segment of the journal is read."""

    def open_input_stream(self, path):
        if "/journal/" in path and self.overtake:
            overtake, self.overtake = self.overtake, None
            overtake()
            assert not Path(path).exists()
        return super().open_input_stream(path)


class Vanishing(Faulty):
    """Lists the commit of step 3, which is gone when it is read."""

    def open_input_stream(self, path):
        if "checkpoints/3-" in path and path.endswith(".json"):
            raise FileNotFoundError(path)
        return super().open_input_stream(path)


def test_ledger__reader_survives_a_commit_that_goes(tmp_path):
    run(new_ledger(tmp_path), should_stop=stop_after(3))
    files = fs.PyFileSystem(Vanishing(fs.LocalFileSystem(), Faults(0, "")))
    ledger = Ledger(Storage(files=files, root=str(tmp_path), uri="far"))
    assert ledger.standing(STAGE.digest) == Begun(2, 4)


class Grumbling(Faulty):
    """Complains at every deletion, done or not."""

    done = True

    def delete_file(self, path):
        if self.done:
            super().delete_file(path)
        raise OSError("cannot put an object where the folder was")


def test_storage__gone_is_gone(tmp_path):
    handler = Grumbling(fs.LocalFileSystem(), Faults(0, ""))
    storage = Storage(files=fs.PyFileSystem(handler), root=str(tmp_path), uri="far")
    storage.write("a/b", b"1")
    storage.remove("a/b")
    assert storage.read("a/b") is None
    storage.write("a/b", b"1")
    handler.done = False
    with pytest.raises(StorageError, match=r"Could not delete far/a/b: cannot put"):
        storage.remove("a/b")
