"""A ledger that somebody edited: what is wrong is found, said once, and done without."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ablation.cells import Begun, Finished, Waiting
from ablation.events import Event
from ablation.execute import execute
from ablation.ledger import Ledger
from ablation.manifest import seal, unseal
from ablation.protocol import Place
from ablation.testing import Toy, ToyTrainer, ignore, paced, planned, stop_after

STAGE = planned("train", Toy(steps=7, rate=0.3), seed=0)
OTHER = planned("train", Toy(steps=7, rate=0.3), seed=1)

Edit = Callable[[Path], None]


def run(ledger: Ledger, stage=STAGE, observe=ignore, **options):
    return execute(
        stage,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=observe,
        terms=paced(0.0),
        origin={"host": "here"},
        **options,
    )


def metrics(ledger: Ledger, stage=STAGE):
    return [(record.step, record.metrics) for record in ledger.journal(stage.digest)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def stopped(store: Path) -> Ledger:
    """A ledger with two stages, each with checkpoints of its steps 4 and 5."""
    ledger = Ledger.open(store)
    ledger.check_writable()
    for stage in (STAGE, OTHER):
        run(ledger, stage, should_stop=stop_after(5))
        (store / "stages" / stage.digest / "attempts" / "1.json").unlink()
    return ledger


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    ledger = Ledger.open(tmp_path_factory.mktemp("undisturbed"))
    ledger.check_writable()
    run(ledger)
    return metrics(ledger)


def only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(at): at.read_bytes() for at in sorted(folder.rglob("*")) if at.is_file()}


def warnings(caplog: pytest.LogCaptureFixture, seen: list[Event]) -> list[str]:
    """What the log was warned of, and the observer."""
    logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return logged + [event.message for event in seen if event.kind == "damaged"]


def change(folder: Path) -> None:
    file = only(folder, "checkpoints/5-*/state/weight.json")
    file.write_text(file.read_text().replace(": 5", ": 4"))


def remove(folder: Path) -> None:
    only(folder, "checkpoints/5-*/state/weight.json").unlink()


def replace_folder(folder: Path) -> None:
    """By that of the step before."""
    new, old = (only(folder, f"checkpoints/{n}-*/state/weight.json") for n in (5, 4))
    new.write_bytes(old.read_bytes())


def change_step(folder: Path) -> None:
    commit = only(folder, "checkpoints/5-*.json")
    commit.write_text(commit.read_text().replace('"step": 5', '"step": 6'))


def cut_commit(folder: Path) -> None:
    commit = only(folder, "checkpoints/5-*.json")
    commit.write_bytes(commit.read_bytes()[:-9])


def empty_commit(folder: Path) -> None:
    only(folder, "checkpoints/5-*.json").write_bytes(b"")


def other_json(folder: Path) -> None:
    only(folder, "checkpoints/5-*.json").write_text("[1, 2]")


def sealed_nonsense(folder: Path) -> None:
    only(folder, "checkpoints/5-*.json").write_bytes(seal({"step": "five"}))


def rename(folder: Path) -> None:
    commit = only(folder, "checkpoints/5-*.json")
    commit.rename(commit.with_name("9-copy.json"))


def change_journal(folder: Path) -> None:
    segment = only(folder, "journal/5-5-*.jsonl")
    segment.write_text(segment.read_text().replace('"loss": ', '"loss": 1'))


def remove_journal(folder: Path) -> None:
    only(folder, "journal/5-5-*.jsonl").unlink()


EDITS = [
    change, remove, replace_folder, change_step, cut_commit, empty_commit, other_json,
    sealed_nonsense, rename, change_journal, remove_journal,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edit__is_said_once_and_the_checkpoint_before_used(
    edit: Edit, stopped, store, undisturbed, caplog
):
    folder, others = store / "stages" / STAGE.digest, files(store / "stages" / OTHER.digest)
    edit(folder)
    seen: list[Event] = []
    assert isinstance(run(stopped, observe=seen.append), Finished)
    assert [e.step for e in seen if e.kind == "progress"] == [5, 6, 7]
    assert metrics(stopped) == undisturbed
    (warning,) = warnings(caplog, seen)
    assert re.search(r"/checkpoints/(5-\w+|9-copy) is damaged and left out: ", warning)
    assert files(store / "stages" / OTHER.digest) == others


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edit__is_left_as_it_is_by_whoever_only_reads(edit: Edit, stopped, store, tmp_path):
    edit(store / "stages" / STAGE.digest)
    before = files(store)
    stage = stopped.stage(STAGE.digest)
    assert isinstance(stopped.standing(STAGE.digest), Begun)
    assert len(stopped.journal(STAGE.digest)) >= 4
    assert stage.restore(tmp_path / "into").step == 4
    assert files(store) == before


def test_edit__a_step_that_is_not_sound_is_sealed_anew_and_refused(stopped, store, tmp_path):
    """Whoever computes the seal again has still not written that checkpoint."""
    commit = only(store / "stages" / STAGE.digest, "checkpoints/5-*.json")
    body = unseal(commit.read_bytes())
    files = {name: entry | {"size": entry["size"] + 1} for name, entry in body["files"].items()}
    commit.write_bytes(seal(body | {"files": files}))
    assert stopped.stage(STAGE.digest).restore(tmp_path / "into").step == 4


def test_edit__files_that_are_added_change_nothing(stopped, store, undisturbed, caplog):
    folder = store / "stages" / STAGE.digest
    for at in ("notes.txt", "checkpoints/9-mine.json.bak", "checkpoints/best.json", "journal/x"):
        (folder / at).write_text("mine")
    (only(folder, "checkpoints/5-*/state") / "weight.json.bak").write_text("{}")
    (folder / "checkpoints" / "9-mine").mkdir()
    (folder / "attempts" / "best.json").write_text("mine")
    assert stopped.standing(STAGE.digest) == Begun(5, 7)
    seen: list[Event] = []
    assert isinstance(run(stopped, observe=seen.append), Finished)
    assert [e.step for e in seen if e.kind == "progress"] == [6, 7]
    assert metrics(stopped) == undisturbed
    assert caplog.text == ""
    assert (folder / "notes.txt").read_text() == "mine"


def test_edit__of_all_checkpoints_begins_the_stage_anew_and_says_so(
    stopped, store, undisturbed, caplog
):
    folder = store / "stages" / STAGE.digest
    for file in folder.glob("checkpoints/*/state/weight.json"):
        file.write_text("{}")
    seen: list[Event] = []
    assert isinstance(run(stopped, observe=seen.append), Finished)
    assert "resumed" not in [e.kind for e in seen]
    assert [e.step for e in seen if e.kind == "progress"] == [1, 2, 3, 4, 5, 6, 7]
    assert metrics(stopped) == undisturbed
    said = warnings(caplog, seen)
    assert ["is damaged and left out" in text for text in said] == [True, True, False]
    assert said[2].endswith("/checkpoints holds no sound checkpoint: the stage begins anew.")


def test_edit__no_checkpoints_at_all_is_a_stage_that_waits(stopped, store, undisturbed, caplog):
    folder = store / "stages" / STAGE.digest / "checkpoints"
    for file in folder.glob("*.json"):
        file.unlink()
    assert stopped.standing(STAGE.digest) == Waiting()
    assert isinstance(run(stopped), Finished)
    assert metrics(stopped) == undisturbed
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"outcome": "finished"}', b"[]"])
def test_edit__an_outcome_that_is_no_outcome_counts_for_nothing(
    content, stopped, store, undisturbed, caplog
):
    run(stopped)
    (store / "stages" / STAGE.digest / "outcome.json").write_bytes(content)
    assert stopped.outcome(STAGE.digest) is None
    assert stopped.standing(STAGE.digest) == Waiting()
    assert isinstance(run(stopped), Finished)
    assert metrics(stopped) == undisturbed
    assert caplog.text.count("outcome.json is damaged, and counts for nothing") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"7"])
def test_edit__of_what_is_only_told_harms_nothing(content, stopped, store, undisturbed):
    folder = store / "stages" / STAGE.digest
    (folder / "stage.json").write_bytes(content)
    (folder / "attempts" / "1.json").write_bytes(content)
    (folder / "lease").mkdir(exist_ok=True)
    assert not stopped.stage(STAGE.digest).description()
    assert [attempt.number for attempt in stopped.stage(STAGE.digest).attempts()] == [1]
    assert isinstance(run(stopped), Finished)
    assert metrics(stopped) == undisturbed


def test_edit__a_study_text_that_is_no_text_can_be_read(stopped, store):
    stopped.write_study("toys", {"study.yaml": "name: toys"})
    (store / "studies" / "toys" / "study.yaml").write_bytes(b"name: \xff")
    assert stopped.read_study("toys", "study.yaml") == "name: �"


def test_edit__keeps_the_times_of_what_was_recorded(stopped, store):
    before = stopped.journal(STAGE.digest)
    change(store / "stages" / STAGE.digest)
    run(stopped, now_ms=lambda: 10**13)
    after = stopped.journal(STAGE.digest)
    assert after[:5] == before
    assert {record.time_ms for record in after[5:]} == {10**13}
