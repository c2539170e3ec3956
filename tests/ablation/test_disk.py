"""A local disk that fills, turns read-only, writes slowly, or gives back what was not written."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from ablation import lease, patience
from ablation.cells import Begun, Finished
from ablation.claims import Claim
from ablation.events import Event
from ablation.execute import execute
from ablation.ledger import Ledger
from ablation.patience import Patience
from ablation.process import Process
from ablation.protocol import Place
from ablation.saving import filled_scratch
from ablation.storage import LostStorageError, Storage, StorageError, Stored
from ablation.terms import Terms
from ablation.testing import (
    Toy,
    ToyTrainer,
    ignore,
    new_ledger,
    paced,
    planned,
    stop_after,
    work_done,
)

STAGE = planned("train", Toy(steps=6, rate=0.3), seed=0)
PAGE = 4096


def run(ledger: Ledger, patience_s: float = 0.0, observe=ignore, place=None, **options) -> Any:
    options.setdefault("run_name", "test")
    return execute(
        STAGE,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=place or Place(),
        observe=observe,
        terms=Terms(
            run=options.pop("run_name"),
            pace=paced(0.0).pace,
            max_failures=0,
            patience_s=patience_s,
        ),
        origin={"host": "here"},
        now_ms=lambda: 5,
        **options,
    )


def found(ledger: Ledger, into: Path) -> tuple:
    """What must be the same whatever happened."""
    folder = ledger.artifacts(STAGE.digest, into)
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return ledger.outcome(STAGE.digest), ledger.journal(STAGE.digest), files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("undisturbed")
    ledger = new_ledger(folder / "ledger")
    run(ledger)
    return found(ledger, folder / "into")


@dataclass(frozen=True)
class Disk:
    """A disk of 64 pages in memory; each file that is not empty takes at least one."""

    folder: Path

    def leave(self, pages: int) -> None:
        """Fill it, but for so many pages."""
        free = int(subprocess.check_output(["stat", "-f", "-c", "%f", self.folder]))
        self.ballast.write_bytes(bytes((free - pages) * PAGE))

    def empty(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def remount(self, how: str) -> None:
        for _ in range(100):
            command = ["mount", "-o", f"remount,{how}", str(self.folder)]
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.02)  # a file is being written
        raise AssertionError("it cannot be mounted anew")

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={64 * PAGE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("There is no mount.")
    if mounted.returncode:
        pytest.skip(f"A disk may not be mounted here: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    """Waits are told of at once, and leases of the dead expire soon."""
    monkeypatch.setattr(patience, "_TOLD_AFTER_S", 0.0)
    monkeypatch.setattr(lease, "EXPIRY_S", 0.2)
    monkeypatch.setattr(lease, "_LOOK_S", 0.05)


@pytest.mark.parametrize("pages", range(4))
def test_disk__fills_in_a_commit_and_the_study_waits_for_room(disk, tmp_path, undisturbed, pages):
    """However far a commit comes, the one before stands while it waits."""
    ledger, said = new_ledger(disk.folder / "ledger"), list[str]()

    def observe(event: Event) -> None:
        if event.kind == "committed" and event.step == 3:
            disk.leave(pages)
        if event.kind == "paused" and "Waiting" in event.message:
            said.append(event.message)
            restored = ledger.stage(STAGE.digest).restore(tmp_path / "restored")
            assert restored is not None
            assert restored.step >= 2
            disk.empty()

    assert isinstance(run(ledger, patience_s=60.0, observe=observe), Finished)
    assert said
    assert all("No space left on device" in text for text in said)
    assert found(ledger, tmp_path) == undisturbed
    assert not [*disk.folder.rglob("*.tmp")]


def test_disk__of_scratch_folders_that_fills_is_waited_for(
    disk, tmp_path, undisturbed, monkeypatch
):
    """Where a checkpoint is first written; no step is done again for it."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    ledger, said = new_ledger(tmp_path / "ledger"), list[str]()

    def observe(event: Event) -> None:
        if event.kind == "committed" and event.step == 3:
            disk.leave(0)
        if event.kind == "paused" and "Waiting" in event.message:
            said.append(event.message)
            disk.empty()

    assert isinstance(run(ledger, patience_s=60.0, observe=observe), Finished)
    assert said[0].startswith(f"There must be room for what is to be saved in {disk.folder}")
    assert len(ledger.stage(STAGE.digest).attempts()) == 1
    assert found(ledger, tmp_path / "into") == undisturbed
    assert [*disk.folder.iterdir()] == []


def test_disk__that_torch_finds_full_is_full(disk, monkeypatch):
    """Of which torch says only that a write failed."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    large, said = torch.zeros(100 * PAGE), list[str]()
    with pytest.raises(LostStorageError, match="There must be room"):
        filled_scratch(Patience(0.1, said.append), lambda folder: torch.save(large, folder / "a"))
    assert said
    assert [*disk.folder.iterdir()] == []


def test_disk__that_stays_full_is_one_clear_error(disk, tmp_path, undisturbed):
    ledger = new_ledger(disk.folder / "ledger")
    run(ledger, should_stop=stop_after(3))
    disk.leave(0)
    with pytest.raises(StorageError, match=r"Could not write .*No space left on device\.$"):
        run(ledger)
    assert ledger.standing(STAGE.digest) == Begun(3, 6)
    disk.empty()
    assert isinstance(run(ledger), Finished)
    assert found(ledger, tmp_path) == undisturbed


def test_disk__that_turns_read_only_is_waited_for(disk, tmp_path, undisturbed):
    ledger, said = new_ledger(disk.folder / "ledger"), list[str]()

    def observe(event: Event) -> None:
        if event.kind == "committed" and event.step == 3:
            disk.remount("ro")
        if event.kind == "paused" and "Waiting" in event.message:
            said.append(event.message)
            disk.remount("rw")

    assert isinstance(run(ledger, patience_s=60.0, observe=observe), Finished)
    assert "Read-only file system" in said[0]
    assert found(ledger, tmp_path) == undisturbed


def test_disk__that_is_away_for_a_while_costs_no_step(tmp_path, undisturbed):
    """Its mount point is an empty folder: that nobody's claim is there is no takeover."""
    mount, hidden, said = tmp_path / "ledger", tmp_path / "hidden", list[str]()
    ledger = new_ledger(mount)

    def observe(event: Event) -> None:
        if event.kind == "committed" and event.step == 3:
            mount.rename(hidden)
            mount.mkdir()
        if event.kind == "paused" and "Waiting" in event.message:
            said.append(event.message)
            mount.rmdir()  # nothing was begun in it
            hidden.rename(mount)

    assert isinstance(run(ledger, patience_s=60.0, observe=observe), Finished)
    assert "is its disk mounted?" in said[0]
    assert len(ledger.stage(STAGE.digest).attempts()) == 1
    assert found(ledger, tmp_path / "into") == undisturbed


def test_disk__that_is_read_only_can_be_read(disk, tmp_path, undisturbed):
    ledger = new_ledger(disk.folder / "ledger")
    run(ledger, should_stop=stop_after(3))
    disk.remount("ro")
    assert ledger.standing(STAGE.digest) == Begun(3, 6)
    assert len(ledger.journal(STAGE.digest)) == 3
    with pytest.raises(StorageError, match=r"must be a folder that can be written.*Read-only"):
        ledger.check_writable()
    with pytest.raises(StorageError, match="Read-only"):
        run(ledger)
    disk.remount("rw")
    assert isinstance(run(ledger), Finished)
    assert found(ledger, tmp_path) == undisturbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Storage):
    """Takes its time with every file that it writes."""

    def write(self, path: str, content: bytes, *, durable: bool = True) -> Stored:
        time.sleep(0.03)
        return Storage.write(self, path, content, durable=durable)

    def upload(self, source: Path, path: str, *, check: bool = False) -> Stored:
        time.sleep(0.03)
        return Storage.upload(self, source, path, check=check)


def test_disk__that_is_slow_is_shared_by_two(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    store = new_ledger(tmp_path / "ledger").storage
    ledger = Ledger(Slow(files=store.files, root=store.root, uri=store.uri, local=store.local))
    place = Place(data={"scratch": tmp_path})

    def until_it_is_done(name: str) -> Any:
        while (result := run(ledger, run_name=name, place=place)) == "busy":
            pass
        return result

    with ThreadPoolExecutor(2) as pool:
        assert {*map(type, pool.map(until_it_is_done, "ab"))} == {Finished}
    assert found(ledger, tmp_path / "into") == undisturbed
    assert {*work_done(tmp_path).values()} == {1}


def shorter(content: bytearray, random: Random) -> bytes:
    return bytes(content[: random.randrange(len(content))])


def flipped(content: bytearray, random: Random) -> bytes:
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def zeroed(content: bytearray, random: Random) -> bytes:
    """As a disk gives back a file whose data never came to it."""
    at = random.randrange(len(content))
    return bytes(content[:at]) + bytes(len(content) - at)


def noise(content: bytearray, random: Random) -> bytes:
    return random.randbytes(len(content))


KINDS = [
    "checkpoints/*/*/*",
    "checkpoints/*.json",
    "journal/*",
    "attempts/*",
    "lease/*",
    "stage.json",
]


@pytest.mark.parametrize("damage", [shorter, flipped, zeroed, noise], ids=lambda d: d.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_disk__damage_to_any_file_changes_no_number(
    tmp_path, undisturbed, kind: str, damage: Callable[[bytearray, Random], bytes]
):
    ledger, random = new_ledger(tmp_path / "ledger"), Random(kind)
    run(ledger, should_stop=stop_after(4))
    folder = tmp_path / "ledger" / "stages" / STAGE.digest
    claim = Claim(name="000001-abcd", process=Process(host="x", pid=1, born="1"), run="a", beat=3)
    (folder / "lease").mkdir(exist_ok=True)
    (folder / "lease" / "000001-abcd.json").write_bytes(claim.to_bytes())
    file = random.choice(sorted(path for path in folder.glob(kind) if path.is_file()))
    file.write_bytes(damage(bytearray(file.read_bytes()), random))
    assert isinstance(run(ledger), Finished)
    assert found(ledger, tmp_path / "into") == undisturbed


@pytest.mark.parametrize("damage", [shorter, flipped, zeroed, noise], ids=lambda d: d.__name__)
def test_disk__damage_to_an_end_is_found(tmp_path, undisturbed, damage, caplog):
    """A damaged outcome counts for nothing; damaged artifacts are named, and never handed on."""
    ledger, random = new_ledger(tmp_path / "ledger"), Random(7)
    run(ledger)
    folder = tmp_path / "ledger" / "stages" / STAGE.digest
    (artifact,) = folder.glob("artifacts/*/*/*")
    artifact.write_bytes(damage(bytearray(artifact.read_bytes()), random))
    with pytest.raises(StorageError, match=f"{artifact.name} must have"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")
    outcome = folder / "outcome.json"
    outcome.write_bytes(damage(bytearray(outcome.read_bytes()), random))
    assert ledger.outcome(STAGE.digest) is None
    assert "outcome.json is damaged" in caplog.text
    assert isinstance(run(ledger), Finished)
    assert found(ledger, tmp_path / "into") == undisturbed
