"""A machine without torch plans, looks at results and asks for help, and says what it lacks."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LACKING = """
import sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None
from ablation.cli import main
sys.exit(main(sys.argv[1:]))
"""


def client(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LACKING, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["plan", str(ROOT / "studies" / "quickstart.yaml")], "0 finished, 30 to run"),
        (["status", str(ROOT / "studies" / "quickstart.yaml")], "waiting"),
        (["table", str(ROOT / "studies" / "quickstart.yaml")], "not started"),
        (["trainers"], "hpm (result version"),
        (["schema"], '"title"'),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_client__needs_no_torch(arguments, shown, tmp_path):
    done = client(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_client__plans_what_only_the_cluster_has(tmp_path):
    """A sketch of every cell, and what is not at hand; no traceback."""
    done = client(tmp_path, "plan", str(ROOT / "studies" / "paper" / "targets.yaml"))
    assert done.returncode == 2
    assert "cells of pretrain" in done.stdout
    assert "timm must be installed to know the weights of" in done.stderr
    assert "Traceback" not in done.stderr


def test_client__says_that_a_checkpoint_cannot_be_looked_at(tmp_path):
    (tmp_path / "mae.pth").write_bytes(b"weights")
    (tmp_path / "study.yaml").write_text(
        """\
name: probe
trainer: hpm
preset: vit_pico_32px
seeds: [0]
evaluate: [knn]
references: [{checkpoint: {weights: mae}}]
metric: knn/top1
baseline: MAE
rows:
  MAE: {predictor.objective: none, mask.hard_share: 0.0}
"""
    )
    done = client(tmp_path, "plan", "study.yaml", "--data", "mae=mae.pth")
    assert done.returncode == 2
    assert "torch must be installed to look at that. Install hpm-ablation[train]." in done.stderr
    assert "Traceback" not in done.stderr
