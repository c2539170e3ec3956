"""Workers that compute together: the peers of one that dies or raises wait for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ablation.cells import Begun, Failed
from ablation.claims import claims_at
from ablation.ledger import Ledger
from ablation.stage_folder import StageFolder
from chaos.marks import LONG_FORM
from chaos.processes import command as command_of
from chaos.processes import descendants, end
from hpm.data.sampling import epoch_order

pytestmark = LONG_FORM

_WITHIN_S = 900.0
_IMAGES, _BATCH, _WORKERS = 32, 16, 2
_STUDY = """\
name: peers
trainer: hpm
preset: vit_pico_32px
set:
  data.name: NAME
  encoder: {width: 16, depth: 1, heads: 2}
  decoder: {width: 16, depth: 1, heads: 2}
  optim: {batch_size: 16, warmup_epochs: 0}
seeds: [0]
evaluate: [{linear: {epochs: 2, warmup_epochs: 1, batch_size: 16}}]
metric: linear/top1
baseline: MAE
rows:
  MAE: {predictor.objective: none, mask.hard_share: 0}
  HPM: {mask.hard_share: [0, 0.5]}
"""


def _ablation(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ablation", *arguments],
        cwd=folder,
        env={**os.environ, "ABLATION_WORKERS": str(_WORKERS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def test_peers__of_one_that_was_killed_go_on_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "peers.yaml").write_text(_STUDY.replace("NAME", "fashion-scenes"))
    done = _ablation(
        tmp_path, "verify-resume", "peers.yaml", "--cell", "HPM", "--kills", "2", "--steps", "12"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HPM, seed 0: all 12 steps compared, of 1000, are the same")
    assert "(kills: 2, " in done.stdout
    assert "workers: 2)" in done.stdout


def test_peers__of_one_that_was_killed_are_not_said_to_have_failed(tmp_path: Path) -> None:
    """First the lead, then the other worker: what its peer raises of that costs no failure."""
    study = tmp_path / "peers.yaml"
    study.write_text(_STUDY.replace("NAME", "fashion-scenes"))
    command = [sys.executable, "-m", "ablation", "run", "peers.yaml", "--storage", "results"]
    environment = {**os.environ, "ABLATION_WORKERS": "2", "ABLATION_CHECKPOINT_EVERY_S": "1"}
    environment |= {"ABLATION_MAX_FAILURES": "0", "ABLATION_CONCURRENCY": "1"}
    log, killed = tmp_path / "log.txt", []
    with log.open("wb") as out:
        driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
    ledger = Ledger.open(tmp_path / "results")
    try:
        for victim in ("lead", "peer"):
            stage, lead = _at_work(driver, ledger, without=killed)
            workers = {
                pid
                for pid in descendants(driver.pid)
                if command_of(pid).startswith("ray::RayTrainWorker")
            }
            assert lead in workers, log.read_text()
            os.kill(lead if victim == "lead" else min(workers - {lead}), signal.SIGKILL)
            killed.append(stage.path)
        assert driver.wait(_WITHIN_S) == 0, log.read_text()
    finally:
        end([driver.pid, *descendants(driver.pid)])
        driver.wait()
    for path in killed:
        ends = [attempt.ended for attempt in StageFolder(ledger.storage, path).attempts()]
        assert ends == ["lost", "finished"], log.read_text()


def _at_work(
    driver: "subprocess.Popen[bytes]", ledger: Ledger, without: list[str]
) -> tuple[StageFolder, int]:
    """A training that has committed a checkpoint, and its lead."""
    limit = time.monotonic() + _WITHIN_S
    while time.monotonic() < limit and driver.poll() is None:
        for digest in ledger.storage.names("stages"):
            stage = ledger.stage(digest)
            claims = claims_at(stage.storage, stage.at("lease")).values()
            if stage.path not in without and isinstance(stage.standing(), Begun):
                for claim in claims:
                    return stage, claim.process.pid
        time.sleep(0.1)
    raise TimeoutError("No training has begun.")


def test_peers__of_one_that_raised_do_not_hide_why(tmp_path: Path) -> None:
    """The second worker meets a damaged image while the lead waits for its gradients."""
    share = epoch_order(_IMAGES, seed=0, epoch=0)[_BATCH // _WORKERS : _BATCH]
    damaged = int(share[3])
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(_IMAGES):
            file = tmp_path / "data" / split / "ab"[number // 16] / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
            if split == "train" and number == damaged:
                content = file.read_bytes()
                file.write_bytes(content[:500] + bytes(1000) + content[1500:])
    (tmp_path / "peers.yaml").write_text(_STUDY.replace("NAME", "photos"))
    done = _ablation(
        tmp_path, "run", "peers.yaml", "--storage", "results", "--data", f"photos={tmp_path}/data"
    )
    assert done.returncode not in (0, os.EX_TEMPFAIL), done.stderr
    ledger = Ledger.open(tmp_path / "results")
    trained = [ledger.stage(digest) for digest in ledger.storage.names("stages")]
    assert len(trained) == len(("MAE", "HPM"))
    for stage in trained:
        outcome = stage.outcome()
        assert isinstance(outcome, Failed)
        assert f"{damaged:02d}.png" in outcome.error
        assert "another try would end the same way" in outcome.error
        assert [attempt.ended for attempt in stage.attempts()] == ["failed"]
