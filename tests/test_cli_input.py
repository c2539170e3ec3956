"""Input that is wrong, or odd, told in one message with nothing touched; on the toy trainer."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from ablation.claims import Claim
from ablation.cli import main
from ablation.execute import execute
from ablation.group import Group, GroupOverError
from ablation.lease import Lease, acquire
from ablation.ledger import Ledger
from ablation.plan import Plan, plan
from ablation.process import Process, this_process
from ablation.protocol import Place
from ablation.study import load_study
from ablation.supervise import BEGUN, RUN
from ablation.testing import ignore, new_ledger, stop_after
from ablation.toy import TRAINER
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

STUDY = """\
name: toys
trainer: toy
preset: quick
seeds: [0]
evaluate: [score]
references: [noise]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3}
"""
DEAD = "http://127.0.0.1:9"  # nobody listens there
READING = ("plan", "status", "table", "why", "ui")
ALL = (*READING, "run", "resume", "sync", "verify-resume")

Refuse = Callable[..., str]


def arguments(command: str) -> list[str]:
    named = {"why": ["toys.yaml", "slow"], "resume": ["toys"], "ui": []}
    more = ["--inline"] if command in ("run", "resume") else []
    return [command, *named.get(command, ["toys.yaml"]), *more]


def files(folder: Path) -> dict[str, bytes]:
    return {str(at): at.read_bytes() for at in folder.rglob("*") if at.is_file()}


def planned(file: str = "toys.yaml") -> Plan:
    return plan(load_study(Path(file)), TRAINER, Place())


def edit(old: str, new: str, file: str = "toys.yaml", into: str = "toys.yaml") -> None:
    text = Path(file).read_text()
    assert old in text
    Path(into).write_text(text.replace(old, new))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ABLATION_STORAGE", "results")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "toys.yaml").write_text(STUDY)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the study; the mirror was told nothing."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ABLATION_TRACKING", DEAD)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        (folder / "toys.yaml").write_text(STUDY)
        assert main(["run", "toys.yaml", "--inline", "--storage", "results"]) == 0
    return folder / "results"


@pytest.fixture
def results(lab: Path, finished: Path) -> Path:
    """A copy of those results."""
    return Path(shutil.copytree(finished, lab / "results"))


@pytest.fixture
def refuse(lab: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """The only line that is said, by a command that touches nothing and exits with 2."""

    def command(*arguments: str) -> str:
        before = files(lab)
        capsys.readouterr()
        assert main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert files(lab) == before
        (line,) = shown.err.splitlines()
        return line

    return command


@pytest.mark.parametrize("command", ALL)
def test_ledger__of_a_newer_version_is_left_alone(command, results, refuse):
    (results / "ledger.json").write_text('{"layout": 2, "more": true}\n')
    assert refuse(*arguments(command)) == (
        f"{results}/ledger.json must say layout 1, got 2: a newer version wrote this ledger. Use "
        f"that version, or choose another storage."
    )


def test_plan__without_the_data_shows_the_study_and_what_is_missing(lab, capsys):
    edit("fast: {rate: 0.3}", "fast: {rate: 0.3, data: numbers}")
    before = files(lab)
    assert main(["plan", "toys.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.err == ("toys.yaml:11: The place must say where 'numbers' lies, it does not.\n")
    lines = shown.out.splitlines()
    assert lines[0] == "toys"
    assert "data: numbers" in shown.out
    assert lines[-1] == (
        "3 cells of train, score: 6 stages, how many are finished cannot be known without the data."
    )
    assert files(lab) == before
    assert main(["status", "toys.yaml"]) == 2
    assert capsys.readouterr().out == ""


def test_profile__is_the_usual_one_where_none_is_named(lab, capsys, monkeypatch):
    """A bad field tells which file was read."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(lab))
    usual, named, other = lab / "ablation" / "profile.yaml", lab / "named.yaml", lab / "other.yaml"
    usual.parent.mkdir()
    for file in (usual, named, other):
        file.write_text("workers: 0\n")
    assert main(["plan", "toys.yaml"]) == 2
    assert capsys.readouterr().err == f"{usual}:1: workers must be at least 1, got 0.\n"
    monkeypatch.setenv("ABLATION_PROFILE", str(named))
    assert main(["plan", "toys.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"{named}:1: ")
    assert main(["plan", "toys.yaml", "--on", str(other)]) == 2
    assert capsys.readouterr().err.startswith(f"{other}:1: ")
    monkeypatch.delenv("ABLATION_PROFILE")
    usual.unlink()
    assert main(["plan", "toys.yaml"]) == 0


@pytest.mark.parametrize("command", ["plan", "run", "sync"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "1", "{}", '{"layout": "1"}', '{"layout": 0}', "\xff"]
)
def test_ledger__that_cannot_be_read_is_left_alone(command, content, results, refuse):
    (results / "ledger.json").write_bytes(content.encode("latin-1"))
    line = refuse(*arguments(command))
    got = content.encode("latin-1")
    assert f'{results}/ledger.json must be {{"layout": 1}}, got {got!r}. Bring back' in line


@pytest.mark.parametrize("command", READING)
def test_reading__works_where_nothing_is(command, lab, capsys):
    before = files(lab)
    code = main(arguments(command))
    assert files(lab) == before
    assert not (lab / "results").exists()
    shown = capsys.readouterr()
    if command == "ui":
        assert code == 2
        assert shown.err == "results holds no study to show. Run one first.\n"
    else:
        assert code == 0
        assert shown.out


def test_sync__of_a_ledger_that_is_not_there(lab, refuse):
    line = refuse("sync", "toys.yaml")
    assert line == (
        f"Could not read {lab}/results/ledger.json: ledger.json must be there, and is not (is its "
        f"disk mounted?)."
    )


def test_run__in_a_folder_without_a_layout_writes_it_once(lab, results, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    (results / "ledger.json").unlink()
    edit("seeds: [0]", "seeds: [0, 1]")
    assert main(["run", "toys.yaml", "--inline"]) == 0
    assert (results / "ledger.json").read_text() == '{"layout": 1}\n'


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("toy", " Did you mean 'toys'?"),
        ("masks", " Choose from: toys."),
        ("../toys", " Did you mean 'toys'?"),
        ("toys/study.yaml", " Choose from: toys."),
        ("..", " Choose from: toys."),
        ("", " Choose from: toys."),
    ],
)
def test_resume__of_a_study_that_is_not_there(name, known, results, refuse):
    assert refuse("resume", name, "--inline") == f"results holds no study {name!r}.{known}"


def test_resume__where_nothing_is(lab, refuse):
    assert refuse("resume", "toys") == "results holds no study 'toys'. There is none."
    assert not (lab / "results").exists()


def test_resume__needs_no_file_and_trains_nothing_twice(results, lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    (lab / "toys.yaml").unlink()
    before = files(results / "stages")
    assert main(["resume", "toys", "--inline"]) == 0
    shown = capsys.readouterr()
    assert "All 6 stages are finished: nothing to train." in shown.err
    assert "fast" in shown.out
    assert files(results / "stages") == before


def test_resume__remembers_where_the_data_lay(results, lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    (lab / "numbers").write_text("1 2 3")
    edit("  slow: {rate: 0.1}", "  slow: {rate: 0.1, data: numbers, sleep_s: 0.001}")
    assert main(["run", "toys.yaml", "--inline", "--data", f"numbers={lab / 'numbers'}"]) == 0
    monkeypatch.chdir("/")
    assert main(["resume", "toys", "--inline", "--storage", str(results)]) == 0
    assert "nothing to train" in capsys.readouterr().err


def test_sync__does_without_data_that_the_last_run_had(lab, capsys, monkeypatch):
    edit("preset: quick", "preset: quick\nset: {data: grain}")
    (lab / "grain").write_text("wheat")
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    assert main(["run", "toys.yaml", "--inline", "--data", "grain=grain"]) == 0
    monkeypatch.delenv("ABLATION_TRACKING")
    assert main(["sync", "toys.yaml"]) == 0
    assert "has what the ledger" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["--data=grain=~nobody.here/x", "--storage=~nobody.here/x"])
def test_folder__of_nobodys_home_is_a_name(where, lab, capsys):
    edit("preset: quick", "preset: quick\nset: {data: grain}")
    assert main(["plan", "toys.yaml", where]) == 2
    assert capsys.readouterr().err.startswith("toys.yaml:4: ")


def test_profile__of_a_home_that_cannot_be_looked_into_is_none(lab, capsys, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "exists", refuse)
    assert main(["status", "toys.yaml"]) == 0
    monkeypatch.undo()


@pytest.mark.parametrize("command", ["status", "table", "why", "plan"])
def test_reading__does_without_data_that_the_last_run_had(
    command, lab, caplog, monkeypatch, capsys
):
    """As on a machine that only submits, where the data are the cluster's."""
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    edit("preset: quick", "preset: quick\nset: {data: grain}")
    (lab / "grain").write_text("wheat")
    at = ["--data", "grain=grain"]
    assert main(["run", "toys.yaml", "--inline", *at]) == 0
    capsys.readouterr()
    assert main([*arguments(command), *at]) == 0
    shown = capsys.readouterr().out
    assert main(arguments(command)) == 0
    assert capsys.readouterr().out == shown
    (said,) = caplog.messages
    assert said == (
        "toys.yaml:4: The place must say where 'grain' lies, it does not. What the last run of "
        "toys found there counts."
    )
    assert main(["run", "toys.yaml", "--inline"]) == 2
    (lab / "results" / "studies" / "toys" / "fingerprints.json").write_text("[]")
    capsys.readouterr()
    assert main(arguments(command)) == 2
    assert "fingerprints.json: must be fingerprints by name, as JSON." in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", '{"a": 1}'])
def test_resume__of_a_place_that_was_damaged(content, results, refuse):
    (results / "studies" / "toys" / "place.json").write_bytes(content.encode("latin-1"))
    assert refuse("resume", "toys", "--inline") == (
        f"{results}/studies/toys/place.json: must be folders by name, as JSON. Run the study's "
        f"file with --data, or mend it."
    )


def test_resume__of_a_study_that_was_damaged(results, refuse):
    (results / "studies" / "toys" / "study.yaml").write_text("name: [toys")
    assert re.fullmatch(r"\S+/toys\.yaml:1: must be YAML: .*", refuse("resume", "toys"))


@pytest.mark.parametrize(
    ("cell", "known"),
    [
        ("slo", " Did you mean 'slow'?"),
        ("fast, seed 1", " Did you mean 'fast, seed 0'?"),
        (
            "x",
            " Choose from: slow, fast, noise (reference), slow, seed 0, fast, seed 0, "
            "noise (reference), seed 0.",
        ),
    ],
)
def test_why__of_a_cell_that_is_not_there(cell, known, results, refuse):
    assert refuse("why", "toys.yaml", cell).endswith(f" study has no cell {cell!r}.{known}")


@pytest.mark.parametrize("cell", ["noise", "noise (reference)", "noise (reference), seed 0"])
def test_why__knows_a_cell_by_all_its_names(cell, results, capsys):
    assert main(["why", "toys.yaml", cell]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["noise (reference), seed 0", "  noise: finished, 1 attempt"]


def lose(results: Path, *, steps: int, run: str = "") -> None:
    """A lost attempt in front of a row's first one, or the one to come."""
    stage = Ledger.open(results).stage(planned().cells[0].stages[0].digest)
    here = {"machine": this_process().host}
    tried = stage.begin_attempt(time_ms=1_700_000_000_000, from_step=0, run=run, provenance=here)
    process = Process(host="gone", pid=1, born="")
    claim = Claim(
        name="000001-aa",
        process=process,
        run=run,
        attempt=tried.number,
        step=steps,
        now_ms=1_700_000_002_000,
    )
    stage.bury([claim])


def test_status_and_run__say_what_interruptions_cost(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    lose(lab / "results", steps=2)
    assert main(["run", "toys.yaml", "--inline"]) == 0
    line = "1 interruption, at least 2 steps repeated (2 s)."
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert main(["status", "toys.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_run__says_that_a_cell_goes_on_with_another_number_of_workers(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    with pytest.raises(GroupOverError):
        execute(
            planned().cells[0].stages[0],
            trainer=TRAINER,
            ledger=new_ledger(lab / "results"),
            place=Place(),
            observe=ignore,
            should_stop=stop_after(1),
            group=Group(workers=2),
        )
    assert main(["run", "toys.yaml", "--inline"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "last bits" in line]
    assert said == [
        "Cells go on that had 2 workers: samples and masks stay the same, but sums will differ in "
        "their last bits. --workers 2 keeps them."
    ]


def test_status__says_nothing_where_nothing_was_lost(results, capsys):
    assert main(["status", "toys.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.count("finished") == 6
    assert "interruption" not in out


def test_sync__tells_mlflow_what_it_missed(results, lab, capsys):
    mark = results / "studies" / "toys" / "mirrored.txt"
    assert not mark.exists(), "the server was dead"
    assert main(["sync", "toys.yaml"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        f"MLflow at sqlite:///{results}/mlflow.db has what the ledger at {results} has."
    ]
    assert shown.out == ""
    assert mark.exists()


def test_sync__without_a_server_is_one_message_and_a_failure(results, lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    before = files(results / "stages")
    assert main(["sync", "toys.yaml"]) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"MLflow at {DEAD} does not answer as it must (MlflowException: ")
    assert line.endswith(
        "The ledger holds everything: run `ablation sync` when MLflow answers again."
    )
    assert shown.out == ""
    assert files(results / "stages") == before
    assert not (results / "studies" / "toys" / "mirrored.txt").exists()


def test_run__is_mirrored_again_where_stages_stand_otherwise(results, lab, capsys, monkeypatch):
    """A failed cell was told; it failed otherwise, or finished, while the server was dead."""
    edit("fast: {rate: 0.3}", "fast: {rate: 0.4, fail_at: 2}")
    scratch = ["--data", f"scratch={lab}"]
    assert main(["run", "toys.yaml", "--inline", *scratch]) == 1
    mark = (results / "studies" / "toys" / "mirrored.txt").read_text()
    (lab / "mended").touch()
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    assert main(["run", "toys.yaml", "--inline", *scratch]) == 0
    monkeypatch.delenv("ABLATION_TRACKING")
    assert (results / "studies" / "toys" / "mirrored.txt").read_text() == mark
    capsys.readouterr()
    assert main(["run", "toys.yaml", "--inline", *scratch]) == 0
    assert "nothing to train" in capsys.readouterr().err
    assert (results / "studies" / "toys" / "mirrored.txt").read_text() != mark


def test_run__supervised_is_begun_again_and_says_what_failed(lab, capfd, monkeypatch):
    """The driver dies once, and one cell fails: that is no reason to begin again."""
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    edit("slow: {rate: 0.1}", "slow: {rate: 0.1, die_at: 2}")
    edit("fast: {rate: 0.3}", "fast: {rate: 0.3, fail_at: 2}")
    scratch = ["--data", f"scratch={lab}"]
    assert main(["run", "toys.yaml", "--inline", "--supervise", *scratch]) == 1
    shown = capfd.readouterr()
    again = "The driver was lost (exit code 17). It begins again in 1 s."
    assert shown.err.splitlines().count(again) == 1
    assert "fast, seed 0: train failed" in shown.out
    assert main(["why", "toys.yaml", "slow", *scratch]) == 0
    told = capfd.readouterr().out
    assert "train: finished, 2 attempts" in told
    assert "lost" in told
    assert "1 interruption, " in told


def test_run__of_a_supervisor_gives_up_a_stage_that_kills_its_drivers(lab, capsys, monkeypatch):
    """All of them are of one run: the fifth loss in place counts, and is not forgotten."""
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    monkeypatch.setenv(RUN, "one")
    edit("slow: {rate: 0.1}", "slow: {rate: 0.1, crash_at: 2}")
    for _ in range(4):
        lose(lab / "results", steps=0, run="one")
    command = [sys.executable, "-m", "ablation.supervised", "run", "toys.yaml", "--inline"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 17
    for _ in range(2):
        assert main(["run", "toys.yaml", "--inline"]) == 1
        assert "Lost: its process was lost 5 times in a row at step " in capsys.readouterr().out
        assert main(["status", "toys.yaml"]) == 1
        assert capsys.readouterr().out.count("finished") == 4
    stage = Ledger.open("results").stage(planned().cells[0].stages[0].digest)
    assert [attempt.ended for attempt in stage.attempts()] == ["lost"] * 5


def test_run__tries_again_what_failed_in_another_run_only(lab, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    edit("fast: {rate: 0.3}", "fast: {rate: 0.3, fail_at: 2}")
    stage = Ledger.open("results").stage(planned().cells[1].stages[0].digest)
    for run, count in (("one", 2), ("one", 2), ("two", 4), ("", 6), ("", 8)):
        monkeypatch.setenv(RUN, run)
        assert main(["run", "toys.yaml", "--inline"]) == 1
        assert len(stage.attempts()) == count


def test_run__of_a_supervisor_tries_nothing_again_under_its_next_driver(lab, monkeypatch):
    """Whose name is its own, where workers may outlive it."""
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    edit("fast: {rate: 0.3}", "fast: {rate: 0.3, fail_at: 2}")
    stage = Ledger.open("results").stage(planned().cells[1].stages[0].digest)
    for run, count in (("one.a", 2), ("one.b", 2), ("two.c", 4)):
        monkeypatch.setattr("ablation.cli.run_name", lambda *, inline, run=run: run)
        assert main(["run", "toys.yaml", "--inline"]) == 1
        assert len(stage.attempts()) == count


def test_run__begun_again_takes_no_empty_mount_point_for_a_ledger(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    monkeypatch.setenv(BEGUN, str(lab / "begun"))
    assert main(["run", "toys.yaml", "--inline"]) == 0
    (lab / "results").rename(lab / "hidden")
    (lab / "results").mkdir()
    capsys.readouterr()
    assert main(["run", "toys.yaml", "--inline"]) == 2
    assert f"{lab}/results/ledger.json" in capsys.readouterr().err
    assert list((lab / "results").iterdir()) == []
    (lab / "results").rmdir()
    (lab / "hidden").rename(lab / "results")
    assert main(["run", "toys.yaml", "--inline"]) == 0
    monkeypatch.setenv(BEGUN, str(lab / "another"))
    monkeypatch.setenv("ABLATION_STORAGE", "elsewhere")
    assert main(["run", "toys.yaml", "--inline"]) == 0


def test_run__leaves_a_failure_alone_that_another_driver_is_at(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    edit("fast: {rate: 0.3}", "fast: {rate: 0.3, fail_at: 2}")
    assert main(["run", "toys.yaml", "--inline"]) == 1
    stage = Ledger.open("results").stage(planned().cells[1].stages[0].digest)
    held = acquire(stage.storage, stage.at("lease"), run="other", now_ms=lambda: 0, beat_s=0.1)
    assert isinstance(held, Lease)
    assert main(["run", "toys.yaml", "--inline"]) == 1
    told = "train of seed 0, which failed, is left to its driver."
    assert told in capsys.readouterr().err
    assert len(stage.attempts()) == 2
    held.release()
    assert main(["run", "toys.yaml", "--inline"]) == 1
    assert len(stage.attempts()) == 4


def test_run__that_lost_cells_may_be_begun_again(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    with monkeypatch.context() as patch:
        lose = {planned().cells[0].stages[0].digest: "its disk is away"}
        patch.setattr("ablation.executors.inline.run_inline", lambda cells, **_: lose)
        assert main(["run", "toys.yaml", "--inline"]) == 75
    told = "slow, seed 0: lost (its disk is away). Run the same command again."
    assert told in capsys.readouterr().err
    assert main(["run", "toys.yaml", "--inline"]) == 0


@pytest.mark.parametrize("unread", [{"stdout"}, {"stdout", "stderr"}], ids=len)
@pytest.mark.parametrize("supervised", [[], ["--supervise"]], ids=len)
def test_run__ends_with_its_code_where_nobody_reads_any_more(lab, monkeypatch, unread, supervised):
    """As of `ablation run ... | tee log` whose tee is gone: the driver dies once, a cell fails."""
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    if supervised:
        edit("slow: {rate: 0.1}", "slow: {rate: 0.1, die_at: 2}")
    edit("fast: {rate: 0.3}", "fast: {rate: 0.3, fail_at: 2}")
    command = [sys.executable, "-m", "ablation", "run", "toys.yaml", "--inline", *supervised]
    reader, writer = os.pipe()
    os.close(reader)
    ends: dict[str, Any] = dict.fromkeys(unread, writer)
    ended = subprocess.run([*command, "--data", f"scratch={lab}"], **ends, check=False)
    os.close(writer)
    assert ended.returncode == 1
    assert (Path("results") / "studies" / "toys" / "table.md").exists()


def test_resume__with_no_room_for_temporary_files_is_no_traceback(results, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ablation.cli.TemporaryDirectory", full)
    assert main(["resume", "toys"]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"The disk of temporary files at {gettempdir()} is full: ")


def test_run__heeds_a_notice_where_it_works_itself(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    monkeypatch.setenv("ABLATION_NOTICE", str(lab / "notice"))
    (lab / "notice").touch()
    edit("slow: {rate: 0.1}", "slow: {rate: 0.1, sleep_s: 0.5}")
    assert main(["run", "toys.yaml", "--inline"]) == 0
    assert f"train saves: {lab}/notice is there" in capsys.readouterr().err


ADDRESSES = [
    ("STORAGE", "s3://AKIA:abc/SECRET@bucket/x", "s3://bucket/x"),
    ("STORAGE", "s3://[a/SECRET@x", "s3://x"),
    ("STORAGE", "s3://[a/x", "s3://[a/x"),
    ("TRACKING", "https://user:SECRET@[mlflow", "https://[mlflow"),
]


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(("field", "uri", "shown"), ADDRESSES)
def test_address__that_is_none(command, field, uri, shown, results, refuse, monkeypatch):
    monkeypatch.setenv(f"ABLATION_{field}", uri)
    line = refuse(*arguments(command))
    assert f", got {shown}" in line
    assert "SECRET" not in line


@pytest.mark.parametrize("command", ["run", "sync", "ui"])
def test_tracking__is_shown_without_its_keys(command, results, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", "http://user:SECRET@127.0.0.1:9?token=SECRET")
    main(arguments(command))
    shown = capsys.readouterr()
    assert "http://127.0.0.1:9" in shown.err
    assert "SECRET" not in shown.out + shown.err


def test_run__storage_that_is_lost_after_the_work_is_no_wrong_input(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    monkeypatch.setenv("ABLATION_PATIENCE_S", "0")
    (lab / "results" / "studies" / "toys" / "table.md").mkdir(parents=True)
    assert main(["run", "toys.yaml", "--inline"]) == 75
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"Could not write {lab}/results/studies/toys/table.md: ")
    assert line.endswith(" Run the same command again when the storage answers.")


def test_run__waits_for_a_storage_that_refuses_at_the_very_end(results, capsys):
    assert main(["sync", "toys.yaml"]) == 0
    in_the_way = results / "stages" / planned().cells[0].stages[0].digest / "certificate.json"
    in_the_way.mkdir()  # which only the table asks for, where all is finished and mirrored
    mended = threading.Timer(0.5, in_the_way.rmdir)
    mended.start()
    assert main(["run", "toys.yaml", "--inline"]) == 0
    mended.join()
    assert "fast" in capsys.readouterr().out
