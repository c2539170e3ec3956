import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest

from ablation.cells import Begun, Failed, Finished, Waiting
from ablation.execute import execute, never
from ablation.ledger import Ledger
from ablation.manifest import DamageError
from ablation.protocol import Place
from ablation.storage import StorageError
from ablation.testing import (
    StopFile,
    Toy,
    ToyTrainer,
    ignore,
    new_ledger,
    paced,
    planned,
    stop_after,
)

STAGE = planned("train", Toy(steps=4, rate=0.3), seed=0)


def run(ledger: Ledger, observe=ignore, stage=STAGE, should_stop=never, **options):
    return execute(
        stage,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=options.pop("place", Place()),
        observe=observe,
        should_stop=should_stop,
        terms=paced(0.0, run=options.pop("run_name", "test")),
        origin={"host": "here"},
        now_ms=lambda: 5,
        **options,
    )


def metrics(ledger: Ledger, stage=STAGE):
    return [(record.step, record.metrics) for record in ledger.journal(stage.digest)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    ledger = new_ledger(tmp_path_factory.mktemp("undisturbed"))
    run(ledger)
    return ledger


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


DAMAGES = pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
FILES = pytest.mark.parametrize(
    "file", ["checkpoints/3-*/state/weight.json", "checkpoints/3-*.json", "journal/3-3-*.jsonl"]
)


@DAMAGES
@FILES
def test_commit__damage_falls_back_to_the_commit_before(
    tmp_path, undisturbed, caplog, damage, file
):
    ledger = new_ledger(tmp_path)
    run(ledger, should_stop=stop_after(3))
    folder = tmp_path / "stages" / STAGE.digest
    assert sorted(re.sub(r"-\w+", "", p.name) for p in (folder / "checkpoints").iterdir()) == [
        "2", "2.json", "3", "3.json",
    ]  # fmt: skip
    damage(only(folder, file))
    with caplog.at_level(logging.WARNING):
        restored = ledger.stage(STAGE.digest).restore(tmp_path / "into")
    assert restored is not None
    assert restored.step == 2
    assert [record.step for record in restored.records] == [1, 2]
    if list(folder.glob("checkpoints/3-*.json")):
        assert re.search(r"/checkpoints/3-\w+ is damaged", caplog.text)
        assert "damaged and left out" in caplog.text
    assert ledger.stage(STAGE.digest).restore(tmp_path / "into").step == 2
    assert [s for s, _ in metrics(ledger)] in ([1, 2], [1, 2, 3])
    seen = []
    assert isinstance(run(ledger, observe=seen.append), Finished)
    assert [event.step for event in seen if event.kind == "progress"] == [3, 4]
    assert metrics(ledger) == metrics(undisturbed)


def test_commit__nothing_sound_starts_over(tmp_path, undisturbed, caplog):
    ledger = new_ledger(tmp_path)
    run(ledger, should_stop=stop_after(3))
    for file in (tmp_path / "stages" / STAGE.digest / "journal").iterdir():
        flip(file)
    assert ledger.stage(STAGE.digest).restore(tmp_path / "into") is None
    assert ledger.stage(STAGE.digest).restore(tmp_path / "into") is None
    with pytest.raises(DamageError):
        ledger.journal(STAGE.digest)
    assert isinstance(run(ledger), Finished)
    assert metrics(ledger) == metrics(undisturbed)
    assert caplog.text.count("is damaged and left out") == 2
    assert caplog.text.count("holds no sound checkpoint: the stage begins anew") == 1


def test_commit__damage_keeps_the_time_of_what_was_recorded(tmp_path):
    ledger = new_ledger(tmp_path)
    run(ledger, should_stop=stop_after(3))
    flip(only(tmp_path / "stages" / STAGE.digest, "checkpoints/3-*/state/weight.json"))
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


def test_commit__resume_step_must_be_there(tmp_path):
    ledger = new_ledger(tmp_path)
    run(ledger, should_stop=stop_after(3))
    with pytest.raises(StorageError, match="must hold a sound checkpoint of step 1, got none"):
        ledger.stage(STAGE.digest).restore(tmp_path / "into", step=1)
    flip(only(tmp_path / "stages" / STAGE.digest, "checkpoints/3-*/state/weight.json"))
    with pytest.raises(StorageError, match="must hold a sound checkpoint of step 3, got none"):
        ledger.stage(STAGE.digest).restore(tmp_path / "into", step=3)


def test_commit__journal_is_a_few_files(tmp_path):
    stage = planned("train", Toy(steps=100), seed=0)
    ledger = new_ledger(tmp_path)
    run(ledger, stage=stage, should_stop=stop_after(99))
    folder = tmp_path / "stages" / stage.digest / "journal"
    assert len(list(folder.iterdir())) <= 8
    assert [record.step for record in ledger.journal(stage.digest)] == [*range(1, 100)]
    run(ledger, stage=stage)
    assert [record.step for record in ledger.journal(stage.digest)] == [*range(1, 101)]


def test_commit__finished_is_for_good(tmp_path):
    ledger = new_ledger(tmp_path)
    run(ledger)
    writer = ledger.writer(STAGE.digest)
    with pytest.raises(StorageError, match="finished already"):
        writer.fail("no")
    with pytest.raises(StorageError, match="finished already"):
        writer.finish({}, export=tmp_path, records=())
    assert not ledger.clear_failure(STAGE.digest)
    assert isinstance(ledger.outcome(STAGE.digest), Finished)


def test_commit__outcome_says_how_its_attempt_ended_where_that_died_at_once(tmp_path):
    ledger = new_ledger(tmp_path)
    run(ledger, should_stop=stop_after(3))
    run(ledger)
    before = ledger.attempts([STAGE.digest])
    assert [attempt.ended for attempt in before] == ["interrupted", "finished"]
    record = tmp_path / "stages" / STAGE.digest / "attempts" / "2.json"
    begun = replace(before[1], ended=None, ended_ms=None, step=None)
    record.write_bytes(begun.to_bytes())
    (first, second) = ledger.attempts([STAGE.digest])
    assert first == before[0]
    assert (second.ended, second.step) == ("finished", before[1].step)
    assert second.begun_ms <= second.ended_ms <= before[1].ended_ms


def test_commit__failure_can_be_cleared(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    stage, place = planned("train", Toy(fail_at=5), seed=0), Place(data={"scratch": scratch})
    ledger = new_ledger(tmp_path / "ledger")
    assert isinstance(run(ledger, stage=stage, place=place), Failed)
    ledger.writer(stage.digest).tidy()
    assert [record.step for record in ledger.journal(stage.digest)] == [1, 2, 3, 4]
    (scratch / "mended").touch()
    assert isinstance(run(ledger, stage=stage, place=place), Failed)
    assert ledger.clear_failure(stage.digest)
    seen = []
    # In the same run the rules would fail it once more: its tries are still what they were.
    again = run(ledger, stage=stage, place=place, observe=seen.append, run_name="again")
    assert isinstance(again, Finished)
    assert (seen[0].kind, seen[0].step) == ("resumed", 4)


def test_commit__damaged_outcome_counts_for_nothing(tmp_path, caplog):
    ledger = new_ledger(tmp_path)
    run(ledger)
    cut(tmp_path / "stages" / STAGE.digest / "outcome.json")
    assert ledger.outcome(STAGE.digest) is None
    assert "outcome" in caplog.text
    ledger.writer(STAGE.digest).tidy()
    assert isinstance(run(ledger), Finished)


def test_ledger__artifacts_are_of_finished_stages(tmp_path):
    ledger = new_ledger(tmp_path)
    with pytest.raises(StorageError, match="got one that has not ended"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")
    ledger.writer(STAGE.digest).fail("no luck")
    with pytest.raises(StorageError, match="got one that failed"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")
    ledger.clear_failure(STAGE.digest)
    run(ledger)
    flip(only(tmp_path / "stages" / STAGE.digest, "artifacts/*/state/weight.json"))
    with pytest.raises(DamageError, match=r"artifacts/\w+/state/weight\.json"):
        ledger.artifacts(STAGE.digest, tmp_path / "into")


@pytest.mark.parametrize("digest", ["", "../../etc", "ab", "ABCDEF0123", "abcdef012/", "g" * 20])
def test_ledger__digests_are_hexadecimal(tmp_path, digest):
    with pytest.raises(ValueError, match="must be 8 to 128 hexadecimal digits"):
        Ledger.open(tmp_path).outcome(digest)


def test_ledger__standings_keep_the_order(tmp_path):
    ledger = new_ledger(tmp_path)
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
    with pytest.raises(ValueError, match="A name must be 1 to 100 letters"):
        ledger.write_study("../stages", {"x": ""})
    with pytest.raises(ValueError, match="A name must be 1 to 100 letters"):
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


def test_ledger__a_layout_is_known_or_refused(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.check_writable()
    ledger.check()
    file = tmp_path / "ledger.json"
    assert json.loads(file.read_text()) == {"layout": 1}
    before = file.stat().st_mtime_ns
    ledger.check_writable()
    assert file.stat().st_mtime_ns == before, "it is written once"
    for content in ('{"layout": 2}', "{"):
        file.write_text(content)
        for check in (ledger.check, ledger.check_writable):
            with pytest.raises(StorageError, match=r"ledger\.json must .*, or choose another"):
                check()
        assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
        assert file.read_text() == content


def test_ledger__that_is_not_there_is_empty_or_not_mounted(tmp_path):
    ledger, said = Ledger.open(tmp_path / "mount"), list[str]()
    ledger.check(empty=True)
    with pytest.raises(StorageError, match=r"Could not read .*is its disk mounted"):
        ledger.check()
    assert not (tmp_path / "mount").exists()
    mount = Timer(0.3, ledger.check_writable)
    mount.start()
    ledger.patient(20, said.append).check()
    mount.join()
    with pytest.raises(StorageError, match=r"mounted"):
        Ledger.open(tmp_path / "other").patient(0.3, said.append).check()


@pytest.mark.parametrize(
    "request_",
    [
        lambda storage, _: storage.read("stages/a"),
        lambda storage, _: storage.names("stages"),
        lambda storage, _: storage.write("stages/a", b"a"),
        lambda storage, file: storage.upload(file, "stages/a"),
        lambda storage, file: storage.download("stages/a", file.with_name("copy")),
        lambda storage, _: storage.measure("stages/a"),
        lambda storage, _: storage.remove("stages/a"),
    ],
    ids=["read", "names", "write", "upload", "download", "measure", "remove"],
)
def test_ledger__whose_disk_is_away_is_neither_empty_nor_begun_anew(tmp_path, request_):
    mount, said, file = tmp_path / "mount", list[str](), tmp_path / "file"
    mount.mkdir()
    file.write_text("a")
    storage = Ledger.open(mount).patient(0.3, said.append).storage
    with pytest.raises(StorageError, match=r"ledger\.json.* \(is its disk mounted\?\)\.$"):
        request_(storage, file)
    assert [*mount.iterdir()] == []


INTERRUPTED = """
import os, signal
from ablation.ledger import Ledger
from ablation.storage import Storage

class Away:
    asked = 0

    def __getattr__(self, name):
        Away.asked += 1
        if Away.asked == 16:
            os.kill(os.getpid(), signal.SIGINT)
        raise OSError("no route to host")

signal.signal(signal.SIGINT, signal.default_int_handler)
ledger = Ledger(Storage(files=Away(), root="/", uri="far://away").patient(3600, print))
digests = [f"{number:08x}" for number in range(40)]
try:
    ledger.{asked}(digests)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("asked", ["standings", "tries", "certificates"])
def test_ledger__an_interrupt_waits_for_no_storage(asked):
    """Neither where it is asked of many stages, nor at the end of the process."""
    program = INTERRUPTED.replace("{asked}", asked)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_ledger__asks_of_each_stage_once_and_in_order(undisturbed):
    digests = [f"{number:08x}" for number in range(50, 0, -1)]
    standings = undisturbed.standings([*digests, STAGE.digest, *digests])
    assert [*standings] == [*digests, STAGE.digest]
    assert {*map(standings.get, digests)} == {Waiting()}
    assert isinstance(standings[STAGE.digest], Finished)
    assert undisturbed.standings(()) == {}


def test_ledger__a_stage_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "stages" / STAGE.digest / "outcome.json").mkdir(parents=True)
    with pytest.raises(StorageError, match="Could not read"):
        Ledger.open(tmp_path).standings(["ab" * 8, STAGE.digest, "cd" * 8])
