"""Studies submitted to the cluster of docker/compose.yaml, each service on a host of its own.

`make test-cluster` runs it.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from cluster.lab import Lab
from deployed import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("TEST_CLUSTER"), reason="make test-cluster runs it"),
]

BOTH_WITHIN_S = 900.0
BEGUN_WITHIN_S = 600.0
DONE_WITHIN_S = 5400.0
LOST_WITHIN_S = 300.0

RUNS = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient("http://mlflow:5000")
experiment = client.get_experiment_by_name(sys.argv[1])
runs = client.search_runs([experiment.experiment_id])
print(json.dumps([run.data.tags for run in runs]))
"""
ATTEMPTS = """
import json, sys
from pathlib import Path
from ablation.include import include
from ablation.profile import load_profile
from ablation.request import ledger_of, planned
profile = load_profile(Path("/etc/ablation/lab.yaml"), environment={}, flags={})
ledger = ledger_of(profile)
((plan, _),) = planned(include(Path(sys.argv[1])), profile, before=ledger)
tries = ledger.tries(plan.stages)
print(json.dumps([[attempt.ended for attempt in each] for each in tries.values()]))
"""


def told(lab: Lab, script: str, *arguments: str) -> list:
    code, out, err = lab.client("python", "-c", script, *arguments)
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def each_once(lab: Lab, study: str, cells: int) -> None:
    """Each stage was finished once, and MLflow has one run of each cell."""
    assert {each.count("finished") for each in told(lab, ATTEMPTS, f"{study}.yaml")} == {1}
    tags = [each["ablation.cell"] for each in told(lab, RUNS, study) if "ablation.cell" in each]
    assert len(tags) == len({*tags}) == cells


def wait_for(ended: str, lab: Lab, within_s: float) -> None:
    """Wait until an attempt of the quickstart has ended so."""
    limit = time.monotonic() + within_s
    while ended not in chain.from_iterable(told(lab, ATTEMPTS, "quickstart.yaml")):
        assert time.monotonic() < limit, lab.logs()
        time.sleep(5.0)


def on_this_machine(study: str, folder: Path) -> str:
    """The study's table, trained without any cluster."""
    command = [sys.executable, "-m", "ablation"]
    named = [str(ROOT / "studies" / f"{study}.yaml"), "--storage", str(folder / "ledger")]
    subprocess.run([*command, "run", *named, "--inline"], check=True, capture_output=True)
    shown = [*command, "table", *named, "--format", "csv"]
    return subprocess.run(shown, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("where", ["the head", "a client"])
def test_doctor__finds_all_well(lab, where):
    if where == "the head":
        done = lab.containers["head"].exec("ablation", "doctor", "--trainer", "toy")
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code, out, err = lab.ablation("doctor", "--trainer", "toy")
    assert code == 0, out + err + lab.logs()
    assert "MEND" not in out
    assert sum(" node " in line for line in out.splitlines()) >= 3


def test_submit__two_studies_share_their_cells(lab):
    for submission in [lab.submit(study) for study in ("toys", "more")]:
        lab.wait_until(f"{submission}: complete", "queue", within_s=BOTH_WITHIN_S)
    for study in ("toys", "more"):
        each_once(lab, study, 2)


def test_submit__a_study_outlives_its_workers_and_its_head(lab, tmp_path):
    """One worker is cut off, another joins, the head is killed; nobody looks after it."""
    follower = ThreadPoolExecutor().submit(
        partial(lab.ablation, "submit", "quickstart.yaml", "--follow", within_s=DONE_WITHIN_S)
    )
    wait_for("finished", lab, within_s=BEGUN_WITHIN_S)
    lab.host("two").cut()
    lab.add_worker("three")
    wait_for("lost", lab, within_s=LOST_WITHIN_S)
    lab.containers["head"].crash()
    code, _, err = follower.result()
    assert code == 0, err
    assert "[30/30]" in err
    each_once(lab, "quickstart", 10)
    code, table, err = lab.ablation("table", "quickstart.yaml", "--format", "csv")
    assert code == 0, err
    assert table == on_this_machine("quickstart", tmp_path)
