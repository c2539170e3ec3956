"""Studies submitted to a cluster of real hosts, which loses a worker and then its head.

`make test-cluster` runs it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ablation.attempts import Attempt
from ablation.cells import Outcome
from ablation.ledger import Ledger
from ablation.plan import plan
from ablation.protocol import Place
from ablation.study import load_study
from ablation.toy import TRAINER
from cluster.hosts import Network, missing
from cluster.lab import Lab

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("TEST_CLUSTER"), reason="make test-cluster runs it"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STUDY = """\
name: toys
trainer: toy
preset: toy
set: {steps: 200, sleep_s: 0.2}
seeds: [0]
evaluate: [score]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3}
"""
OTHER = STUDY.replace("name: toys", "name: more").replace("fast", "swift")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if why := missing():
        pytest.fail(f"There can be no hosts here: {why}.")
    home = Path(tempfile.mkdtemp(prefix="ablation-lab-", dir="/var/tmp"))
    with Network(home, Lab.environment()) as network:
        lab = Lab(network)
        (home / "toys.yaml").write_text(STUDY)
        (home / "more.yaml").write_text(OTHER)
        lab.start_head()
        lab.start_worker("one")
        lab.start_worker("two")
        try:
            yield lab
        finally:
            print(lab.logs())
    shutil.rmtree(home)


def stages(study: Path) -> list[str]:
    return list(plan(load_study(study), TRAINER, Place()).stages)


def outcomes(storage: Path, study: Path) -> dict[str, Outcome | None]:
    return {digest: Ledger.open(storage).outcome(digest) for digest in stages(study)}


def tried(storage: Path, study: Path) -> dict[str, tuple[Attempt, ...]]:
    return Ledger.open(storage).tries(stages(study))


def test_doctor__finds_all_well(lab):
    code, out, err = lab.ablation("doctor", "--trainer", "toy")
    assert code == 0, out + err + lab.logs()
    assert sum(line.startswith("ok   on the head, node ") for line in out.splitlines()) == 3


@pytest.mark.parametrize("token", ["", "ff" * 32])
def test_token__none_or_a_wrong_one_is_let_nowhere(lab, token):
    for command in (["queue"], ["submit", "toys.yaml"], ["run", "toys.yaml"], ["logs", "toys"]):
        code, out, err = lab.ablation(*command, RAY_AUTH_TOKEN=token)
        assert code == 2, (command, out, err)
        assert out == ""
        assert "Traceback" not in err
    assert not (lab.network.home / "results" / "stages").exists()


def test_submit__comes_to_its_end_without_a_worker_and_without_its_head(lab):
    """Two studies at once, which share their cells; a worker is lost, then the head."""
    home = lab.network.home
    for study in ("toys", "more"):
        code, out, err = lab.ablation("submit", f"{study}.yaml")
        assert code == 0, out + err + lab.logs()
    lab.client.start("ablation", "keep", "--on", str(lab.profile), log="keep.log", **lab.secrets)
    lab.wait_until("is committed", "why", "toys.yaml", "slow")
    lab.workers["two"].lose()
    lab.start_worker("three")
    lab.wait_until("lost", "why", "toys.yaml", "slow", or_in=("why", "toys.yaml", "fast"))
    lab.head.lose()
    lab.start_head()
    lab.wait_until("complete", "queue", times=2, within_s=600)
    inline = home / "inline"
    code, *_ = lab.ablation("run", "toys.yaml", "--inline", "--storage", str(inline))
    assert code == 0
    assert outcomes(home / "results", home / "toys.yaml") == outcomes(inline, home / "toys.yaml")
    for study in ("toys", "more"):
        for tries in tried(home / "results", home / f"{study}.yaml").values():
            assert [attempt.ended for attempt in tries].count("finished") == 1
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for study in ("toys", "more"):
        experiment = client.get_experiment_by_name(study)
        runs = client.search_runs([experiment.experiment_id])
        assert sum("ablation.cell" in run.data.tags for run in runs) == 2
