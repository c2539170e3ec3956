"""The command line on the real trainer, with a few small images in ImageNet's layout."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.cli import _COMMANDS, main
from ablation.ledger import Ledger
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

STUDY = """\
name: small
trainer: hpm
preset: vit_pico_32px
set:
  data: {name: halves, image_size: 16}
  encoder: {patch_size: 4, width: 16, depth: 1, heads: 2}
  decoder: {width: 16, depth: 1, heads: 2}
  optim.batch_size: 16
  optim.warmup_epochs: 0
  epochs: 2
seeds: [0, 1]
evaluate: [{knn: {k: [5], report_k: 5}}, {linear: {epochs: 2, warmup_epochs: 0, batch_size: 16}}]
references: [pixels]
metric: knn/top1
baseline: MAE
rows:
  MAE: {predictor.objective: none, mask.hard_share: 0}
  HPM: {mask.hard_share: [0, 0.5]}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the study and a data set of two classes, bright above and bright below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABLATION_DATA", f"halves={tmp_path / 'halves'}")
    monkeypatch.setenv("COLUMNS", "100")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for kind in ("above", "below"):
            folder = tmp_path / "halves" / split / kind
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[:8] += np.uint8(100)
                image = Image.fromarray(pixels if kind == "above" else pixels[::-1].copy())
                image.save(folder / f"{index}.png")
    (tmp_path / "small.yaml").write_text(STUDY)
    return tmp_path


def _edit(lab: Path, old: str, new: str) -> None:
    file = lab / "small.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def _csv(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    main(["table", "small.yaml", "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_run__from_nothing_to_a_table(lab, capsys):
    assert main(["plan", "small.yaml"]) == 0
    assert "6 cells of pretrain, knn, linear: 18 stages, 0 finished, 18 to run." in " ".join(
        capsys.readouterr().out.split()
    )
    assert not (lab / "ablation-results").exists()

    assert main(["run", "small.yaml", "--inline"]) == 0
    shown = capsys.readouterr()
    for words in ("MAE", "HPM", "pixels", "knn/top1", "linear/top1"):
        assert words in shown.out
    assert f"Ledger: {lab / 'ablation-results'}" in shown.err
    assert "mlflow.db" in shown.err

    assert main(["status", "small.yaml"]) == 0
    assert capsys.readouterr().out.count("finished") == 18
    rows = {(row["row"], row["metric"]): row for row in _csv(capsys)}
    assert rows["HPM", "knn/top1"]["n"] == "2"
    assert float(rows["pixels", "knn/top1"]["mean"]) > 90
    table = (lab / "ablation-results" / "studies" / "small" / "table.md").read_text()
    assert "| HPM" in table


def test_run__again_trains_nothing_and_says_so(lab, capsys):
    assert main(["run", "small.yaml", "--inline"]) == 0
    ledger = Ledger.open(lab / "ablation-results")
    before = sorted(p.name for p in (lab / "ablation-results" / "stages").glob("*/attempts/*"))
    capsys.readouterr()
    assert main(["run", "small.yaml", "--inline"]) == 0
    assert "All 18 stages are finished: nothing to train." in capsys.readouterr().err
    assert (
        sorted(p.name for p in (lab / "ablation-results" / "stages").glob("*/attempts/*")) == before
    )
    assert ledger.studies() == ["small"]

    _edit(lab, "  HPM: {", "  Hard Patches Mining: {")
    assert main(["run", "small.yaml", "--inline"]) == 0
    assert "All 18 stages are finished: nothing to train." in capsys.readouterr().err


def test_run__a_failing_cell_exits_1_and_is_named(lab, capsys):
    _edit(lab, "  epochs: 2\n", "  epochs: 2\n  optim.base_lr: 1.0e+30\n")
    assert main(["run", "small.yaml", "--inline"]) == 1
    shown = capsys.readouterr()
    assert "pretrain failed" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert main(["status", "small.yaml"]) == 1
    assert main(["table", "small.yaml"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mask.hard_share: 0}", "mask.hard_share: [0, 2]}", ["small.yaml:17", "[0, 1]"]),
        ("preset: vit_pico_32px", "preset: vit_pico_32", ["small.yaml:3", "'vit_pico_32px'"]),
        ("name: halves,", "name: halfs,", ["small.yaml:5", "'halves'"]),
        ("metric: knn/top1", "metric: knn/top11", ["small.yaml:14", "'knn/top1'"]),
        ("optim.batch_size: 16", "optim.batch_sise: 16", ["small.yaml:8", "optim.batch_size"]),
        ("seeds: [0, 1]", "seeds: [0, 1", ["small.yaml:", "must be YAML"]),
        ("k: [5]", "k: [5, 49]", ["small.yaml:12", "exceed the 48 images"]),
        ("batch_size: 16}", "batch_size: 49}", ["small.yaml:12", "batch_size=49 for 48 images"]),
        ("optim.batch_size: 16", "optim.batch_size: 64", ["small.yaml:", "for 48 images"]),
    ],
)
def test_run__wrong_input_exits_2_and_writes_nothing(lab, capsys, old, new, words):
    _edit(lab, old, new)
    assert main(["run", "small.yaml", "--inline"]) == 2
    shown = capsys.readouterr()
    for word in words:
        assert word in shown.err
    assert "Traceback" not in shown.err
    assert not (lab / "ablation-results").exists()


def test_run__unreadable_image_exits_2(lab, capsys):
    (lab / "halves" / "train" / "below" / "3.png").write_bytes(b"no image")
    assert main(["run", "small.yaml", "--inline"]) == 2
    assert "3.png" in capsys.readouterr().err
    assert not (lab / "ablation-results").exists()


def test_run__unwritable_storage_exits_2(lab, capsys):
    (lab / "file").write_text("")
    assert main(["run", "small.yaml", "--inline", "--storage", str(lab / "file" / "x")]) == 2
    assert "must be a folder that can be written" in capsys.readouterr().err


def test_run__workers_that_do_not_divide_the_batch_exit_2(lab, capsys):
    assert main(["run", "small.yaml", "--workers", "3"]) == 2
    assert "divisible by 3 workers" in capsys.readouterr().err


def test_data__must_be_name_and_folder(lab, capsys):
    assert main(["plan", "small.yaml", "--data", "halves"]) == 2
    assert "--data: must be NAME=FOLDER" in capsys.readouterr().err


def test_missing_study__exits_2(lab, capsys):
    assert main(["run", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_schema__is_json_with_the_trainers_names(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "vit_pico_32px" in schema["properties"]["preset"]["enum"]


def test_trainers__lists_what_is_installed(capsys):
    assert main(["trainers"]) == 0
    out = capsys.readouterr().out
    assert "hpm (result version 3)" in out
    assert "toy (result version 1)\n  stages: train, noise, score, probe\n" in out


def test_flags__are_pinned(capsys):
    """No flag may change the science: a new one must be thought about here."""
    flags = set()
    for command in _COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = capsys.readouterr().out.replace(",", " ").replace("]", " ").split()
        flags |= {word.strip("[") for word in words if word.strip("[").startswith("--")}
    assert flags == {
        *("--help", "--on", "--storage", "--data", "--allow-download"),
        *("--inline", "--workers", "--supervise"),
        *("--format", "--port", "--trainer"),
        *("--cell", "--kills", "--seed", "--steps"),
        "--follow",
        "--priority",
    }


def test_plan__loads_nothing_heavy(lab):
    code = (
        "import sys; from ablation.cli import main; main(['plan', 'small.yaml']); "
        "print([m for m in ('torch', 'ray', 'mlflow', 'pandas', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def _ablation(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ablation", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_for(condition: Callable[[], bool], limit_s: float = 300) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 130), ("SIGKILL", -9)])
def test_interrupt__goes_on_to_the_same_bits(lab, capsys, monkeypatch, sent, code):
    monkeypatch.setenv("ABLATION_CHECKPOINT_EVERY_S", "0.01")
    _edit(lab, "epochs: 2\nseeds: [0, 1]", "epochs: 40\nseeds: [0]")
    storage = lab / "cut"
    running = _ablation("run", "small.yaml", "--inline", "--storage", str(storage))
    _wait_for(lambda: any(storage.glob("stages/*/checkpoints/*.json")))
    os.kill(running.pid, signal.Signals[sent])
    _, err = running.communicate(timeout=300)
    assert running.returncode == code
    assert "Traceback" not in err
    assert main(["run", "small.yaml", "--inline", "--storage", str(storage)]) == 0
    assert "goes on after step" in capsys.readouterr().err
    assert main(["run", "small.yaml", "--inline", "--storage", str(lab / "whole")]) == 0
    cut, whole = Ledger.open(storage), Ledger.open(lab / "whole")
    digests = [path.name for path in (lab / "whole" / "stages").iterdir()]
    assert len(digests) == 9
    for digest in digests:
        assert cut.outcome(digest) == whole.outcome(digest)
        assert [(r.step, r.metrics) for r in cut.journal(digest)] == [
            (r.step, r.metrics) for r in whole.journal(digest)
        ]
