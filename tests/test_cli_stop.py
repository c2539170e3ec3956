"""A cell of a study is stopped while it runs, and goes on when a person wants it again."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ablation.backlog import progress
from ablation.cells import Finished
from ablation.cli import main
from ablation.include import include
from ablation.layout import LostPlaceError
from ablation.ledger import Ledger
from ablation.profile import Profile
from ablation.request import planned
from ablation.stops import stop_cells, stopped_titles
from ablation.storage import Storage
from ablation.submission import find_submissions, write_submission
from ablation.submit import packed
from ablation.yamlfile import Document
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

STUDY = """\
name: toys
trainer: toy
preset: toy
set: {steps: 60, sleep_s: 0.2}
seeds: [0]
evaluate: [score]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3, steps: 4}
"""
SLOW = "slow, seed 0"
GO_ON = "it goes on when the study is run or submitted again"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("ABLATION_STORAGE", "results")
    monkeypatch.setenv("ABLATION_CHECKPOINT_EVERY_S", "0.1")
    (tmp_path / "toys.yaml").write_text(STUDY)
    return tmp_path


def quick(lab: Path) -> None:
    text = STUDY.replace("steps: 60, sleep_s: 0.2", "steps: 4")
    (lab / "toys.yaml").write_text(text.replace(", steps: 4}\n", "}\n"))


def start() -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ablation", "run", "toys.yaml", "--inline"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def said(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main([*command]) == code
    shown = capsys.readouterr()
    return shown.out + shown.err


def left_stopped(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ledger:
    """The ledger of a study, of which all is finished but a cell that was stopped."""
    quick(lab)
    monkeypatch.setenv("ABLATION_AGAIN", "1")
    ledger = Ledger.open(lab / "results")
    ledger.check_writable()
    stop_cells(ledger, "toys", [SLOW])
    said(capsys, "run", "toys.yaml", "--inline", code=1)
    monkeypatch.delenv("ABLATION_AGAIN")
    return ledger


def test_stop__of_a_cell_at_work_leaves_the_others_to_their_ends(lab, capsys):
    """It needs neither Ray nor the study's file, and its driver ends with 1."""
    running = start()
    wait_for(lambda: any((lab / "results").glob("stages/*/checkpoints/*.json")))
    assert f"{SLOW} of toys saves and ends where it is at work; {GO_ON}." in said(
        capsys, "stop", "toys", "slow"
    )
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1, err
    assert "lost" not in err
    assert "does not answer" not in err
    client = MlflowClient(f"sqlite:///{lab / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("toys")
    runs = client.search_runs([experiment.experiment_id])
    states = {run.info.run_name: run.info.status for run in runs}
    assert (states[SLOW], states["fast, seed 0"]) == ("KILLED", "FINISHED")
    assert f"{SLOW}: train stopped at " in out
    assert GO_ON in out

    status = said(capsys, "status", "toys.yaml")
    assert "stopped at" in status
    assert f"{SLOW} was stopped: {GO_ON}." in status
    assert "finished" in status
    assert f"{SLOW}: train stopped at " in said(capsys, "table", "toys.yaml")
    why = said(capsys, "why", "toys.yaml", "slow")
    assert "asked to stop after step" in why
    assert f"It was stopped: {GO_ON}." in why
    table = (lab / "results" / "studies" / "toys" / "table.md").read_text()
    assert "train stopped at" in table


def test_run__goes_on_with_what_was_stopped_where_a_person_asks(lab, capsys, monkeypatch):
    """A driver that was begun again does not."""
    quick(lab)
    ledger = Ledger.open(lab / "results")
    ledger.check_writable()
    stop_cells(ledger, "toys", [SLOW])
    monkeypatch.setenv("ABLATION_AGAIN", "1")
    assert "1 of 2" not in said(capsys, "run", "toys.yaml", "--inline", code=1)
    assert sum(isinstance(ledger.outcome(d.name), Finished) for d in stages(lab)) == 2
    assert stopped_titles(ledger, "toys") == {SLOW}
    assert "not begun" in said(capsys, "why", "toys.yaml", "slow")

    monkeypatch.delenv("ABLATION_AGAIN")
    said(capsys, "run", "toys.yaml", "--inline")
    assert sum(isinstance(ledger.outcome(d.name), Finished) for d in stages(lab)) == 4
    assert stopped_titles(ledger, "toys") == frozenset()
    assert "stopped" not in said(capsys, "status", "toys.yaml")
    words = "slow of toys must not have ended to be stopped, and has."
    assert words in said(capsys, "stop", "toys", "slow", code=2)


def stages(lab: Path) -> list[Path]:
    return [*(lab / "results" / "stages").iterdir()]


def test_stop__is_of_one_study_alone(lab, capsys, monkeypatch):
    """Another one trains what both want; then the first has it, too."""
    quick(lab)
    (lab / "more.yaml").write_text((lab / "toys.yaml").read_text().replace("toys", "more"))
    monkeypatch.setenv("ABLATION_AGAIN", "1")
    ledger = Ledger.open(lab / "results")
    ledger.check_writable()
    stop_cells(ledger, "toys", [SLOW])
    said(capsys, "run", "toys.yaml", "--inline", code=1)
    assert SLOW in said(capsys, "status", "toys.yaml")
    said(capsys, "run", "more.yaml", "--inline")
    assert SLOW not in said(capsys, "status", "toys.yaml")


def test_resume__goes_on_with_what_was_stopped(lab, capsys, monkeypatch):
    left_stopped(lab, capsys, monkeypatch)
    said(capsys, "resume", "toys", "--inline")
    assert len(stages(lab)) == 4


def test_sync__leaves_what_was_stopped(lab, capsys, monkeypatch):
    ledger = left_stopped(lab, capsys, monkeypatch)
    said(capsys, "sync", "toys.yaml")
    assert stopped_titles(ledger, "toys") == {SLOW}


def submitted(lab: Path, *others: str, code: int | None = None) -> str:
    """A submission, of `toys` and others like it, that has no driver yet; its name."""
    ledger = Ledger.open(lab / "results")
    ledger.check_writable()
    profile = Profile(storage=str(lab / "results"), tracking="http://127.0.0.1:1", priority=3)
    text, names = (lab / "toys.yaml").read_text(), ["toys", *others]
    texts = [text.replace("name: toys", f"name: {name}") for name in names]
    sent = packed(names, [Document(file="x.yaml", text=each) for each in texts], profile)
    write_submission(ledger.storage, replace(sent, code=code))
    return sent.id


def stopped(lab: Path) -> list[str]:
    """The submissions that were asked to end."""
    return [each.id for each in find_submissions(Storage.open(lab / "results")) if each.stopped]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["stop", "toy", "slow"], "holds no study 'toy'. Did you mean 'toys'?"),
        (["stop", "toys", "slo"], "the study has no cell 'slo'. Did you mean 'slow'?"),
    ],
)
def test_stop__of_what_is_not_there(lab, capsys, command, words):
    quick(lab)
    said(capsys, "run", "toys.yaml", "--inline")
    assert words in said(capsys, *command, code=2)


def test_stop__knows_a_study_by_its_submission(lab, capsys):
    name = submitted(lab)
    assert f"{SLOW} of toys saves and ends" in said(capsys, "stop", name, "slow, seed 0")
    assert stopped_titles(Ledger.open(lab / "results"), "toys") == {SLOW}


class Jobs:
    """A cluster that takes all."""

    def session(self) -> str:
        return "session_1"

    def look(self, job: str) -> None:
        return None

    def submit(self, job: str, command: str, **_: object) -> None:
        pass

    def follow(self, job: str, say: Callable[[str], None]) -> None:
        raise KeyboardInterrupt

    def logs(self, job: str) -> str:
        return "[0/4] slow, seed 0: train began\n[0/4] too slow, seed 0: train began\nfast: x\n"


class Away(Jobs):
    """A cluster that does not answer any more."""

    def look(self, job: str) -> None:
        raise LostPlaceError("The head does not answer.")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.executors.jobs.Jobs.at", lambda _: Jobs())
    monkeypatch.setenv("ABLATION_ADDRESS", "10.0.0.5:6379")


def test_submit__wants_what_was_stopped_again_and_queue_does_not(lab, capsys, cluster):
    submitted(lab)
    ledger = Ledger.open(lab / "results")
    stop_cells(ledger, "toys", [SLOW])
    assert "1 waiting, 1 stopped" in said(capsys, "queue") or "not begun" in said(capsys, "queue")
    assert stopped_titles(ledger, "toys") == {SLOW}
    said(capsys, "submit", "toys.yaml")
    assert stopped_titles(ledger, "toys") == frozenset()


def test_logs__of_a_cell_are_the_lines_about_it(lab, capsys, cluster):
    submitted(lab)
    assert said(capsys, "logs", "toys", "slow") == "[0/4] slow, seed 0: train began\n"
    assert said(capsys, "logs", "toys").count("\n") == 3


def test_queue__is_in_the_order_of_turns(lab, capsys, cluster):
    first = submitted(lab)
    later = packed(["toys"], [Document(file="x", text=STUDY)], Profile(storage="r", priority=5))
    write_submission(Ledger.open(lab / "results").storage, later)
    shown = said(capsys, "queue").splitlines()
    heads = [line for line in shown if line[0].isdigit()]
    assert heads[0].startswith(f"1. {later.id}: lost, priority 5, submitted by ")
    assert heads[1].startswith(f"2. {first}: lost, priority 3, submitted by ")
    assert heads[0].endswith(" ago")


@pytest.mark.parametrize(("left_s", "words"), [(3600.0, " (to 2"), (1e12, " left")])
def test_queue__says_when_a_study_ends(lab, capsys, cluster, monkeypatch, left_s, words):
    """Not, of what the storage says, beyond all calendars."""
    submitted(lab)
    known = progress(planned(include(lab / "toys.yaml"), Profile())[0][0], Ledger.open("results"))
    monkeypatch.setattr(
        "ablation.cluster_commands.progress", lambda *_: replace(known, left_s=left_s)
    )
    line = said(capsys, "queue").splitlines()[1]
    assert words in line
    assert ("UTC" in line) == (left_s == 3600.0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "local"])
def test_queue__without_a_dashboard_tells_what_the_storage_does(lab, capsys, monkeypatch, address):
    monkeypatch.setenv("ABLATION_ADDRESS", address)
    name = submitted(lab)
    shown = said(capsys, "queue", code=2)
    assert f"1. {name}: submitted, priority 3, submitted by " in shown
    assert "   toys: 0 of 2 cells done, 0 running, 2 waiting, no telling yet when it ends" in shown
    assert shown.count("So this is what the storage tells") == 1
    assert "must" in shown


def test_stop__of_a_study_ends_all_that_run_it(lab, capsys, cluster):
    first, second, third = submitted(lab), submitted(lab), submitted(lab, code=0)
    shown = said(capsys, "stop", "toys")
    assert stopped(lab) == [first, second]
    assert f"{first}, {second}: saves and ends." in shown
    assert f"{third} has ended already, with 0." in said(capsys, "stop", third, code=2)


def test_stop__of_a_study_leaves_what_was_submitted_with_it(lab, capsys, cluster):
    quick(lab)
    name = submitted(lab, "blocks")
    assert f"{SLOW} of toys saves and ends" in said(capsys, "stop", "toys")
    ledger = Ledger.open(lab / "results")
    assert stopped_titles(ledger, "toys") == {SLOW, "fast, seed 0"}
    assert stopped_titles(ledger, "blocks") == frozenset()
    assert stopped(lab) == []
    said(capsys, "run", "toys.yaml", "--inline")
    assert "toys must not have ended to be stopped, and has." in said(
        capsys, "stop", "toys", code=2
    )
    said(capsys, "stop", name)
    assert stopped(lab) == [name]


def test_submit__interrupted_says_that_it_goes_on(lab, capsys, cluster):
    shown = said(capsys, "submit", "toys.yaml", "--follow", code=130)
    (sent,) = find_submissions(Storage.open(lab / "results"))
    assert f"{sent.id} goes on without you. `ablation stop {sent.id}` ends it." in shown
    assert not sent.stopped


def test_submit__is_kept_where_the_cluster_is_lost_at_that_moment(
    lab, capsys, cluster, monkeypatch
):
    def lose(*_: object, **__: object) -> None:
        raise LostPlaceError("The head does not answer.")

    monkeypatch.setattr(Jobs, "submit", lose)
    shown = said(capsys, "submit", "toys.yaml", code=75)
    (sent,) = find_submissions(Storage.open(lab / "results"))
    assert (
        f"The head does not answer. {sent.id} is kept: `ablation queue` gives it a driver" in shown
    )


def test_stop__is_kept_where_the_cluster_does_not_answer(lab, capsys, cluster, monkeypatch):
    name = submitted(lab)
    monkeypatch.setattr("ablation.executors.jobs.Jobs.at", lambda _: Away())
    shown = said(capsys, "stop", name, code=75)
    assert f"The head does not answer. It is kept that {name} must end" in shown
    assert stopped(lab) == [name]


def test_logs__of_a_cell_are_those_of_its_study(lab, capsys, cluster, monkeypatch):
    submitted(lab, "blocks")
    line = "[0/4] slow, seed 0: train began\n"
    text = f"toys:\n{line}blocks:\n{line}{line}toys:\n{line}"  # begun again
    monkeypatch.setattr(Jobs, "logs", lambda self, job: text)
    assert said(capsys, "logs", "toys", "slow") == 2 * line
    assert said(capsys, "logs", "blocks", "slow") == 2 * line
    assert said(capsys, "logs", "toys") == text
