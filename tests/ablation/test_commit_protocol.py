"""A writer that dies at any single operation of the storage loses at most its last commit."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from ablation.cells import Begun, Failed, Finished, Waiting
from ablation.execute import execute, never
from ablation.ledger import Ledger
from ablation.manifest import DamageError
from ablation.protocol import Place
from ablation.storage import Storage, StorageError
from ablation.testing import StopFile, Toy, ToyTrainer, ignore, planned

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
        checkpoint_every_s=0.0,
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
    ledger = Ledger.open(tmp_path_factory.mktemp("undisturbed"))
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
    assert stage.resume_step() == step
    assert ledger.standing(SHORT.digest) == (Begun(step, 3) if step else Waiting())


@pytest.mark.parametrize("local", [True, False], ids=["local", "object store"])
@pytest.mark.parametrize("mode", ["before", "half", "silent"])
def test_commit__crash_at_any_operation(tmp_path, undisturbed, mode, local):
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


def stop_after(step: int):
    """A stop once so many steps are done: asked once at the start and once after each step."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
FILES = pytest.mark.parametrize(
    "file", ["checkpoints/3/state/weight.json", "checkpoints/3.json", "journal/3-3.jsonl"]
)


@DAMAGES
@FILES
def test_commit__damage_falls_back_to_the_commit_before(
    tmp_path, undisturbed, caplog, damage, file
):
    ledger = Ledger.open(tmp_path)
    run(ledger, should_stop=stop_after(3))
    folder = tmp_path / "stages" / STAGE.digest
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "2", "2.json", "3", "3.json",
    ]  # fmt: skip
    damage(folder / file)
    with caplog.at_level(logging.WARNING):
        restored = ledger.stage(STAGE.digest).restore(tmp_path / "into")
    assert restored is not None
    assert restored.step == 2
    assert [record.step for record in restored.records] == [1, 2]
    if (folder / "checkpoints/3.json").exists():
        assert "checkpoint of step 3" in caplog.text
        assert "damaged and left out" in caplog.text
    assert ledger.stage(STAGE.digest).resume_step() == 2
    assert [s for s, _ in metrics(ledger)] in ([1, 2], [1, 2, 3])
    seen = []
    assert isinstance(run(ledger, observe=seen.append), Finished)
    assert [event.step for event in seen if event.kind == "progress"] == [3, 4]
    assert metrics(ledger) == metrics(undisturbed)


def test_commit__nothing_sound_starts_over(tmp_path, undisturbed, caplog):
    ledger = Ledger.open(tmp_path)
    run(ledger, should_stop=stop_after(3))
    for file in (tmp_path / "stages" / STAGE.digest / "journal").iterdir():
        flip(file)
    assert ledger.stage(STAGE.digest).restore(tmp_path / "into") is None
    assert ledger.stage(STAGE.digest).resume_step() == 0
    with pytest.raises(DamageError):
        ledger.journal(STAGE.digest)
    assert isinstance(run(ledger), Finished)
    assert metrics(ledger) == metrics(undisturbed)
    assert caplog.text.count("damaged") > 3


def test_commit__damage_keeps_the_time_of_what_was_recorded(tmp_path):
    ledger = Ledger.open(tmp_path)
    run(ledger, should_stop=stop_after(3))
    flip(tmp_path / "stages" / STAGE.digest / "checkpoints/3/state/weight.json")
    before = ledger.journal(STAGE.digest)
    execute(
        STAGE,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=ignore,
        should_stop=never,
        origin={"host": "there"},
        now_ms=lambda: 9,
    )
    after = ledger.journal(STAGE.digest)
    assert after[:3] == before
    assert [record.time_ms for record in after] == [5, 5, 5, 9]


def test_commit__stale_future_is_dropped(tmp_path, undisturbed):
    ledger = Ledger.open(tmp_path)
    run(ledger, should_stop=stop_after(3))
    assert run(ledger, resume_step=2, should_stop=stop_after(0)) is None
    assert isinstance(run(ledger, resume_step=2), Finished)
    assert metrics(ledger) == metrics(undisturbed)


def test_commit__resume_step_must_be_there(tmp_path):
    ledger = Ledger.open(tmp_path)
    run(ledger, should_stop=stop_after(3))
    with pytest.raises(StorageError, match="must hold a sound checkpoint of step 1, got none"):
        run(ledger, resume_step=1)
    flip(tmp_path / "stages" / STAGE.digest / "checkpoints/3/state/weight.json")
    with pytest.raises(StorageError, match="must hold a sound checkpoint of step 3, got none"):
        run(ledger, resume_step=3)


def test_commit__journal_is_a_few_files(tmp_path):
    stage = planned("train", Toy(steps=100), seed=0)
    ledger = Ledger.open(tmp_path)
    run(ledger, stage=stage, should_stop=stop_after(99))
    folder = tmp_path / "stages" / stage.digest / "journal"
    assert len(list(folder.iterdir())) <= 8
    assert [record.step for record in ledger.journal(stage.digest)] == [*range(1, 100)]
    run(ledger, stage=stage)
    assert [record.step for record in ledger.journal(stage.digest)] == [*range(1, 101)]


def test_commit__finished_is_for_good(tmp_path):
    ledger = Ledger.open(tmp_path)
    run(ledger)
    writer = ledger.writer(STAGE.digest)
    with pytest.raises(StorageError, match="finished already"):
        writer.fail("no")
    with pytest.raises(StorageError, match="finished already"):
        writer.finish({}, export=tmp_path, records=())
    assert not ledger.clear_failure(STAGE.digest)
    assert isinstance(ledger.outcome(STAGE.digest), Finished)


def test_commit__failure_can_be_cleared(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    stage, place = planned("train", Toy(fail_at=5), seed=0), Place(data={"scratch": scratch})
    ledger = Ledger.open(tmp_path / "ledger")
    assert isinstance(run(ledger, stage=stage, place=place), Failed)
    ledger.writer(stage.digest).tidy()
    assert [record.step for record in ledger.journal(stage.digest)] == [1, 2, 3, 4]
    (scratch / "mended").touch()
    assert isinstance(run(ledger, stage=stage, place=place), Failed)
    assert ledger.clear_failure(stage.digest)
    seen = []
    assert isinstance(run(ledger, stage=stage, place=place, observe=seen.append), Finished)
    assert (seen[0].kind, seen[0].step) == ("resumed", 4)


def test_commit__damaged_outcome_counts_for_nothing(tmp_path, caplog):
    ledger = Ledger.open(tmp_path)
    run(ledger)
    cut(tmp_path / "stages" / STAGE.digest / "outcome.json")
    assert ledger.outcome(STAGE.digest) is None
    assert "outcome" in caplog.text
    ledger.writer(STAGE.digest).tidy()
    assert isinstance(run(ledger), Finished)


def test_ledger__reader_survives_a_writer_that_goes_on(tmp_path):
    """Between listing and reading, the writer may replace the commit that was listed."""
    ledger, stage = Ledger.open(tmp_path), planned("train", Toy(steps=9), seed=0)
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
        if path.endswith("checkpoints/3.json"):
            raise FileNotFoundError(path)
        return super().open_input_stream(path)


def test_ledger__reader_survives_a_commit_that_goes(tmp_path):
    run(Ledger.open(tmp_path), should_stop=stop_after(3))
    files = fs.PyFileSystem(Vanishing(fs.LocalFileSystem(), Faults(0, "")))
    ledger = Ledger(Storage(files=files, root=str(tmp_path), uri="far"))
    assert ledger.standing(STAGE.digest) == Begun(2, 4)


def test_ledger__artifacts_are_of_finished_stages(tmp_path):
    ledger = Ledger.open(tmp_path)
    with pytest.raises(StorageError, match="got one that has not ended"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")
    ledger.writer(STAGE.digest).fail("no luck")
    with pytest.raises(StorageError, match="got one that failed"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")
    ledger.clear_failure(STAGE.digest)
    run(ledger)
    flip(tmp_path / "stages" / STAGE.digest / "artifacts/state/weight.json")
    with pytest.raises(DamageError, match=r"artifacts/state/weight\.json"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")


@pytest.mark.parametrize("digest", ["", "../../etc", "ab", "ABCDEF0123", "abcdef012/", "g" * 20])
def test_ledger__digests_are_hexadecimal(tmp_path, digest):
    with pytest.raises(ValueError, match="must be 8 to 128 hexadecimal digits"):
        Ledger.open(tmp_path).outcome(digest)


def test_ledger__standings_keep_the_order(tmp_path):
    ledger = Ledger.open(tmp_path)
    run(ledger, should_stop=stop_after(2))
    other = planned("train", Toy(steps=1), seed=7)
    run(ledger, stage=other)
    digests = ["ab" * 10, other.digest, STAGE.digest, "ab" * 10]
    standings = ledger.standings(digests)
    assert list(standings) == digests[:3]
    assert [type(standing) for standing in standings.values()] == [Waiting, Finished, Begun]
    assert standings[STAGE.digest] == Begun(2, 4)
    assert ledger.standings([]) == {}


def test_ledger__keeps_texts_about_studies(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.write_study("mask strategy", {"study.yaml": "name: x\n", "table.md": "|ü|"})
    assert ledger.studies() == ["mask strategy"]
    assert ledger.read_study("mask strategy", "table.md") == "|ü|"
    assert ledger.read_study("mask strategy", "table.csv") is None
    with pytest.raises(ValueError, match="A name must be letters"):
        ledger.write_study("../stages", {"x": ""})
    with pytest.raises(ValueError, match="A name must be letters"):
        ledger.write_study("fine", {"a/b": ""})


def test_ledger__describes_a_stage_once(tmp_path):
    stage = Ledger.open(tmp_path).stage(STAGE.digest)
    assert stage.description() is None
    stage.describe(STAGE, {"host": "a"})
    stage.describe(STAGE, {"host": "b"})
    description = stage.description()
    assert description["created"] == {"host": "a"}
    assert description["config"]["mask"] == {"prefer": "hard", "ratio": 0.5}
    assert json.loads((tmp_path / f"stages/{STAGE.digest}/stage.json").read_text()) == description


def test_ledger__stop_file_is_a_stop(tmp_path):
    assert not StopFile(tmp_path / "stop")()
    (tmp_path / "stop").touch()
    assert StopFile(tmp_path / "stop")()
