"""The command line as people type it: on the embedded Ray, with real training."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector

from ablation.ledger import Ledger
from chaos.servers import S3_KEYS, s3_server, s3_uri

pytestmark = pytest.mark.cluster

STUDY = """\
name: small
trainer: hpm
preset: vit_pico_32px
set:
  encoder: {width: 16, depth: 1, heads: 2}
  decoder: {width: 16, depth: 1, heads: 2}
  optim.batch_size: 80
  epochs: 2
seeds: [0]
evaluate: [{knn: {k: [5], report_k: 5}}, {linear: {epochs: 5, warmup_epochs: 1}}]
references: [random]
metric: knn/top1
baseline: MAE
rows:
  MAE: {predictor.objective: none, mask.hard_share: 0}
  HPM: {mask.hard_share: [0, 0.5]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(STUDY)
    return tmp_path


def _start(folder: Path, storage: str, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ablation", "run", "small.yaml", "--storage", storage, *flags]
    environment = {**os.environ, "ABLATION_CHECKPOINT_EVERY_S": "0.2"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _finish(folder: Path, storage: str, *flags: str) -> str:
    running = _start(folder, storage, *flags)
    out, err = running.communicate(timeout=1200)
    assert running.returncode == 0, err
    assert "knn/top1" in out
    return err


def _outcomes(storage: Path) -> dict[str, object]:
    ledger = Ledger.open(storage)
    digests = sorted(path.name for path in (storage / "stages").iterdir())
    return {
        digest: (ledger.outcome(digest), [(r.step, r.metrics) for r in ledger.journal(digest)])
        for digest in digests
    }


def _wait_for_commit(storage: Path, running: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 900
    while not any(storage.glob("stages/*/checkpoints/*.json")):
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_run__killed_driver_goes_on_to_the_same_bits(folder: Path):
    """SIGTERM ends with 130, SIGKILL at once; the same command then ends as if undisturbed.

    Both go to the whole group, as `timeout` and batch systems send them.
    """
    for sent, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        running = _start(folder, "cut")
        _wait_for_commit(folder / "cut", running)
        os.killpg(running.pid, sent)
        _, err = running.communicate(timeout=600)
        assert running.returncode == code, err
        assert "Traceback" not in err
    assert "goes on after step" in _finish(folder, "cut")
    _finish(folder, "whole", "--inline")
    assert _outcomes(folder / "cut") == _outcomes(folder / "whole")
    assert len(_outcomes(folder / "whole")) == 9


def test_run__two_workers_a_cell(folder: Path):
    """A Train worker group (gloo) computes the same study; only sums may differ in order."""
    _finish(folder, "two", "--workers", "2")
    _finish(folder, "one", "--inline")
    two, one = _outcomes(folder / "two"), _outcomes(folder / "one")
    assert two.keys() == one.keys()
    ledger = Ledger.open(folder / "two")
    workers = {a.workers for d in two for a in ledger.stage(d).attempts()}
    assert workers == {2}
    for digest in two:
        mine, theirs = two[digest][1], one[digest][1]
        assert [step for step, _ in mine] == [step for step, _ in theirs]
        for (_, a), (_, b) in zip(mine[:5], theirs[:5], strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


def test_run__cell_larger_than_the_machine_exits_2(folder: Path):
    running = _start(folder, "none", "--workers", "80")
    _, err = running.communicate(timeout=600)
    assert running.returncode == 2, err
    assert "A cell needs 80 worker(s)" in err
    assert "Traceback" not in err
    assert not (folder / "none").exists()


TOYS = """\
name: toys
trainer: toy
preset: toy
set: {steps: 10, sleep_s: 0.1}
seeds: [0, 1]
evaluate: [score]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3}
"""


@pytest.fixture
def s3(folder: Path, monkeypatch) -> Iterator[str]:
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server(folder) as server:
        yield s3_uri(server, "toys")


def test_run__of_a_file_that_includes_studies_trains_what_they_share_once(folder):
    other = STUDY.replace("name: small", "name: other").replace("[0, 0.5]}", "0.5}")
    (folder / "other.yaml").write_text(other)
    (folder / "all.yaml").write_text("name: all\ninclude: [small.yaml, other.yaml]\n")
    command = [sys.executable, "-m", "ablation", "run", "all.yaml", "--storage", "results"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    ledger = Ledger.open(folder / "results")
    stages = [path.name for path in (folder / "results" / "stages").iterdir()]
    assert len(stages) == 3 * 3 + 3, "the second study adds one row"
    assert {len(tries) for tries in ledger.tries(stages).values()} == {1}
    assert ledger.studies() == ["other", "small"]


def _verify(folder: Path, storage: str, study: str, cell: str, *flags: str) -> str:
    """What is said of a cell that resumes to the same bits."""

    def ablation(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ablation", *arguments, "--storage", storage]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=600
        )

    done = ablation("verify-resume", study, "--cell", cell, "--kills", "2", *flags)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{cell}, seed 0: " in done.stderr
    assert "goes on after step" in done.stderr
    held = Ledger.open(storage).storage
    infos = held.files.get_file_info(FileSelector(held.root, recursive=True))
    names = [info.base_name for info in infos if info.is_file]
    assert sorted(names) == ["certificate.json", "ledger.json"]
    assert f"| {cell} ✓ |" in ablation("table", study, "--format", "md").stdout
    (line,) = done.stdout.splitlines()
    return line


def test_verify_resume__kills_and_certifies_on_s3(folder: Path, s3: str):
    (folder / "toys.yaml").write_text(TOYS)
    line = _verify(folder, s3, "toys.yaml", "fast")
    assert line.startswith("fast, seed 0: all 12 steps compared, of 12, are the same")
    assert "(kills: 2, " in line


def test_verify_resume__of_hpm_compares_its_whole_state(folder: Path):
    """Weights, teacher, optimizer, samples and masks of a real training, killed twice."""
    line = _verify(folder, str(folder / "results"), "small.yaml", "HPM", "--steps", "12")
    assert line.startswith("HPM, seed 0: all 12 steps compared, of 200, are the same")
    assert "(kills: 2, " in line
