"""One lab for all tests of the cluster."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lab import Lab, missing
from deployed import ROOT

TOYS = """\
name: toys
trainer: toy
preset: toy
set: {steps: 100, sleep_s: 0.2}
seeds: [0]
evaluate: [score]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3}
"""
STUDIES = {
    "toys": TOYS,
    "more": TOYS.replace("fast: {rate: 0.3}", "faster: {rate: 0.5}"),
    "fresh": TOYS.replace("seeds: [0]", "seeds: [1]"),
}


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The whole cluster with two workers; `LAB_IMAGE` may name the image's root, unpacked."""
    if lacks := missing():
        pytest.fail(f"There can be no lab here; this machine lacks {lacks}.")
    image = os.environ.get("LAB_IMAGE")
    with Lab(Path(image) if image else None, ABLATION_NODE_CPUS="1") as lab:
        for name, text in STUDIES.items():
            (lab.studies / f"{name}.yaml").write_text(text.replace("toys", name))
        shutil.copy(ROOT / "studies" / "quickstart.yaml", lab.studies)
        lab.up("head", "keep")
        lab.add_worker("one")
        lab.add_worker("two")
        try:
            yield lab
        finally:
            print(lab.logs())
