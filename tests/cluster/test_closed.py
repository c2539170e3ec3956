"""What the cluster's doors let in, knocked at from its own network."""

import base64
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cluster.knock import refused
from cluster.lab import Lab
from deployed import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("TEST_CLUSTER"), reason="make test-cluster runs it"),
]

KNOCK = Path(__file__).with_name("knock.py")
RUN_WITHIN_S = 900.0
BEGUN_WITHIN_S = 300.0
UNTOKENED = range(20000, 30000)
"""Ports of torch's rendezvous and sums, which ask for nothing."""


def documented() -> dict[str, set[int]]:
    """Ports in docs/deploy.md, by what listens."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    found: dict[str, set[int]] = {}
    for ports, listens in re.findall(r"^\| ([\d, to]+) \| (\w+)", text, re.M):
        numbers = [int(number) for number in re.findall(r"\d+", ports)]
        several = range(numbers[0], numbers[-1] + 1) if " to " in ports else numbers
        found.setdefault(listens, set()).update(several)
    return found


def _within(lab: Lab, *command: str) -> str:
    """What a program of this machine prints on the client's network."""
    inside = ["ip", "netns", "exec", lab.hosts["client"].space, *command]
    return subprocess.run(inside, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.fixture(scope="module")
def knocked(lab: Lab) -> dict[str, dict[int, Any]]:
    """Open ports and their answers by host, while a study is trained."""
    toys = lab.submit("toys")
    lab.wait_until("is committed", "why", "toys.yaml", "slow", within_s=BEGUN_WITHIN_S)
    addresses = {
        host.addresses["cluster"]: name
        for name, host in lab.hosts.items()
        if "cluster" in host.addresses and name != "client"
    }
    found = json.loads(_within(lab, sys.executable, str(KNOCK), *addresses))
    lab.wait_until(f"{toys}: complete", "queue", within_s=RUN_WITHIN_S)
    return {
        addresses[address]: {int(port): answer for port, answer in answers.items()}
        for address, answers in found.items()
    }


def test_scan__finds_only_the_documented_ports(knocked):
    known = documented()
    nodes = known["nodes"]
    allowed = {"head": known["head"] | nodes, "one": nodes, "two": nodes}
    allowed |= {"mlflow": known["mlflow"], "storage": known["storage"]}
    strange = {name: {*ports} - allowed.get(name, set()) for name, ports in knocked.items()}
    assert {name: ports for name, ports in strange.items() if ports} == {}
    assert {8265, 6379} <= {*knocked["head"]}
    assert {*knocked["mlflow"]} == {5000}
    assert {*knocked["storage"]} == {7070}


def test_scan__every_port_asks_for_credentials_but_those_of_a_cells_workers(knocked):
    answers = {
        (name, port): said for name, ports in knocked.items() for port, said in ports.items()
    }
    let_in = {where: said for where, said in answers.items() if not refused(said)}
    assert all(port in UNTOKENED for _, port in let_in), let_in


def test_database__is_not_reached_from_the_nodes(lab):
    at = lab.hosts["postgres"].addresses["database"]
    ask = f"import socket; socket.create_connection(({at!r}, 5432), 3)"
    done = lab.containers["head"].exec("python", "-c", ask)
    assert done.returncode == 1
    assert "OSError" in done.stderr or "TimeoutError" in done.stderr


@pytest.mark.parametrize("token", ["", "ff" * 32])
def test_token__none_or_a_wrong_one_is_let_nowhere(lab, token):
    before = {path for path in lab.objects() if "/stages/" in path}
    for command in (["queue"], ["submit", "fresh.yaml"], ["run", "fresh.yaml"], ["logs", "toys"]):
        code, out, err = lab.ablation(*command, RAY_AUTH_TOKEN=token, RAY_AUTH_TOKEN_PATH="")
        assert code == 2, (command, out, err)
        assert "Traceback" not in err
    assert {path for path in lab.objects() if "/stages/" in path} == before


class Mlflow:
    """MLflow's server as somebody with a password."""

    def __init__(self, lab: Lab, user: str = "", password: str = "", host: str = "mlflow:5000"):
        self.at, self.headers = lab.hosts["mlflow"].addresses["cluster"], {"Host": host}
        if user:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {token}"

    def ask(self, method: str, what: str, **content: Any) -> tuple[int, str]:
        headers = {**self.headers, "Content-Type": "application/json"}
        body = json.dumps(content) if method != "GET" else None
        with closing(http.client.HTTPConnection(self.at, 5000, timeout=30)) as asked:
            asked.request(method, f"/api/2.0/mlflow/{what}", body=body, headers=headers)
            answer = asked.getresponse()
            return answer.status, answer.read().decode()


EXPERIMENTS = "experiments/search?max_results=100"


@pytest.fixture(scope="module")
def admin(lab: Lab) -> Mlflow:
    return Mlflow(lab, "admin", lab.secret("mlflow_admin_password").strip())


@pytest.fixture(scope="module")
def studies(lab: Lab) -> Mlflow:
    text = lab.secret("mlflow_credentials")
    password = re.search(r"mlflow_tracking_password = (\S+)", text)
    assert password
    return Mlflow(lab, "studies", password[1])


@pytest.fixture
def guest(lab: Lab, admin: Mlflow) -> Iterator[Mlflow]:
    """Another team's user."""
    assert admin.ask("POST", "users/create", username="guest", password="a-first-word")[0] == 200
    yield Mlflow(lab, "guest", "a-first-word")
    assert admin.ask("DELETE", "users/delete", username="guest")[0] == 200


@pytest.mark.parametrize(
    ("user", "password"), [("", ""), ("studies", "x"), ("admin", "password1234")]
)
def test_mlflow__without_its_password_tells_nothing(lab, user, password):
    code, text = Mlflow(lab, user, password).ask("GET", EXPERIMENTS)
    assert code == 401
    assert "toys" not in text


@pytest.mark.parametrize("host", ["evil.example", "10.evil.com:5000", "mlflow.evil.example:5000"])
def test_mlflow__under_a_name_that_is_not_allowed_tells_nothing(lab, studies, host):
    stranger = Mlflow(lab, host=host)
    stranger.headers |= {"Authorization": studies.headers["Authorization"]}
    code, text = stranger.ask("GET", EXPERIMENTS)
    assert code == 403
    assert "toys" not in text


def test_mlflow__a_leaked_password_opens_nothing_once_it_is_changed(lab, admin, guest):
    assert guest.ask("GET", EXPERIMENTS)[0] == 200
    changed = admin.ask("PATCH", "users/update-password", username="guest", password="another-word")
    assert changed[0] == 200
    assert guest.ask("GET", EXPERIMENTS)[0] == 401
    assert Mlflow(lab, "guest", "another-word").ask("GET", EXPERIMENTS)[0] == 200


def test_mlflow__another_teams_user_sees_and_changes_nothing(knocked, studies, guest):
    code, text = studies.ask("GET", "experiments/get-by-name?experiment_name=toys")
    assert code == 200
    known = json.loads(text)["experiment"]["experiment_id"]
    assert "toys" not in guest.ask("GET", EXPERIMENTS)[1]
    for method, what, content in (
        ("GET", f"experiments/get?experiment_id={known}", {}),
        ("GET", "experiments/get-by-name?experiment_name=toys", {}),
        ("POST", "runs/create", {"experiment_id": known}),
        ("POST", "experiments/delete", {"experiment_id": known}),
    ):
        assert guest.ask(method, what, **content)[0] == 403, what


def test_mlflow__the_studies_user_is_no_administrator(studies):
    code, _ = studies.ask("POST", "users/create", username="mine", password="a-long-password")
    assert code == 403


@pytest.mark.parametrize("who", ["a wrong secret", "another tenant"])
def test_storage__is_closed_to(knocked, lab, who):
    key, secret = lab.keys("default" if who == "a wrong secret" else "tenant")
    client = lab.storage(key, secret if who == "another tenant" else "f" * 40)
    (path, *_) = lab.objects()
    for ask in (
        lambda: client.list_objects_v2(Bucket="ablation"),
        lambda: client.get_object(Bucket="ablation", Key=path),
        lambda: client.put_object(Bucket="ablation", Key="lab/mine", Body=b""),
        lambda: client.delete_object(Bucket="ablation", Key=path),
    ):
        with pytest.raises(ClientError) as refusal:
            ask()
        assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert path in lab.objects()


def test_storage__of_another_tenant_is_an_error_for_people(lab):
    key, secret = lab.keys("tenant")
    given = {"AWS_SHARED_CREDENTIALS_FILE": "", "AWS_ACCESS_KEY_ID": key}
    for command in (["status", "toys.yaml"], ["table", "toys.yaml"], ["submit", "toys.yaml"]):
        code, out, err = lab.ablation(*command, **given, AWS_SECRET_ACCESS_KEY=secret)
        assert code == 2, (command, out, err)
        assert "Traceback" not in err
        assert secret not in out + err


def test_secrets__are_in_no_log_object_database_process_or_job(knocked, lab):
    lines = [line for name in lab.secrets for line in lab.secret(name).splitlines()]
    values = [line.rpartition("=")[2].strip() for line in lines if not line.startswith("[")]
    hidden = [value.encode() for value in values if len(value) >= 20]
    assert len(hidden) >= 6
    found = []
    for path in lab.written():
        content = path.read_bytes()
        found += [f"{path}" for value in hidden if value in content]
    mine = lab.storage(*lab.keys())
    for bucket in ("ablation", "mlflow"):
        for path in lab.objects(bucket):
            content = mine.get_object(Bucket=bucket, Key=path)["Body"].read()
            found += [path for value in hidden if value in content]
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout
    found += ["a process" for value in hidden if value in listed]
    at, token = lab.hosts["head"].addresses["cluster"], lab.secret("ray_token").strip()
    with closing(http.client.HTTPConnection(at, 8265, timeout=30)) as head:
        head.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        jobs = head.getresponse().read()
    assert b"toys" in jobs
    found += ["a job" for value in hidden if value in jobs]
    assert found == []
