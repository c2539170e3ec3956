"""What starts a cluster, as files: compose.yaml, ports, profiles, secrets.

Nothing is started here: the schema is the one that check-jsonschema carries, commands are parsed by
the Ray and the MLflow that are installed.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.scripts import scripts

from ablation.address import has_keys
from ablation.profile import Profile, load_profile
from deployed import (
    DOCKER,
    HEAD_PORTS,
    KUBERAY,
    NODE_PORTS,
    ROOT,
    documents,
    pod_templates,
    ray_flags,
    rays,
    seconds,
    services,
    start_params,
    usual,
)

DOCS = ROOT / "docs" / "deploy.md"

SERVICES = sorted(services())


def _block(service: str) -> str:
    """The lines of a service, with comments."""
    text = (DOCKER / "compose.yaml").read_text()
    found = re.search(rf"^  {service}:\n((?:    .*\n|\n)+)", text, re.M)
    assert found
    return found[1]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose__fits_its_schema(name):
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(DOCKER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_compose__publishes_on_loopback_unless_told_otherwise(service):
    for entry in services()[service].get("ports", []):
        host, outside, inside = usual(entry).split(":")
        assert host == "127.0.0.1"
        assert outside == inside, "lab.yaml must fit outside, too"
        assert usual(entry, ABLATION_BIND="192.0.2.1").startswith("192.0.2.1:")


def test_compose__publishes_only_what_asks_for_credentials():
    entries = [entry for each in services().values() for entry in each.get("ports", [])]
    assert {usual(entry).rpartition(":")[2] for entry in entries} == {"8265", "5000", "7070"}


@pytest.mark.parametrize("service", SERVICES)
def test_compose__containers_are_closed(service):
    what = services()[service]
    assert what["read_only"] is True
    assert what["cap_drop"] == ["ALL"]
    assert what["security_opt"] == ["no-new-privileges:true"]
    if service == "storage-folder":  # gives a volume away, and can do nothing else
        assert what["cap_add"] == ["CHOWN"]
        assert what["network_mode"] == "none"
    else:
        assert "cap_add" not in what
        assert what["user"].partition(":")[0] not in ("", "0", "root")


@pytest.mark.parametrize("service", SERVICES)
def test_compose__says_how_a_service_is_well_and_when_it_begins_again(service):
    what, said = services()[service], " ".join(_block(service).replace("#", " ").split())
    if what["restart"] == "unless-stopped":
        assert seconds(what["stop_grace_period"]) >= 30
        well = "healthcheck" in what and what["healthcheck"]["test"][0] == "CMD"
        assert well or "No health check: " in said
    else:
        assert what["restart"] == "no"
        assert "No health check and no restart" in said


def test_compose__has_no_secrets_in_commands_or_variables():
    (compose,) = documents(DOCKER / "compose.yaml")
    for name, what in compose["services"].items():
        variables = what.get("environment", {})
        secret = [v for v in variables if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", v)]
        assert all(v.endswith(("_FILE", "_PATH")) for v in secret), name
        sources = what.get("secrets", [])
        given = {each if isinstance(each, str) else each["source"] for each in sources}
        assert given <= {*compose["secrets"]}
        words = " ".join([*map(str, what.get("command", [])), *map(str, variables.values())])
        used = set(re.findall(r"/run/secrets/(\w+)", words))
        assert used <= given, name
    assert all([*secret] == ["file"] for secret in compose["secrets"].values())


def _written() -> list[Path]:
    files = [path for path in DOCKER.rglob("*") if path.is_file() and "secrets" not in path.parts]
    return [path for path in files if path.name != ".env" and "__pycache__" not in path.parts]


@pytest.mark.parametrize("path", _written(), ids=lambda path: path.name)
def test_files__hold_no_secret_and_short_lines(path):
    text = path.read_text()
    assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), "a URI with a password"
    assert not re.search(r"\b[0-9a-fA-F]{32,}\b", text), "what looks like a key"
    assigned = re.findall(
        r"(?i)(?:password|secret_key|access_key|auth_token)\w*\s*[:=]\s*(.*)", text
    )
    assert all(not re.match(r"[\"']?[A-Za-z0-9+/]{8,}[\"']?\s*$", value) for value in assigned), (
        assigned
    )
    assert max(map(len, text.splitlines())) <= 100


def test_images__are_pinned():
    images = {usual(what["image"]) for what in services().values()}
    for thing in rays().values():
        for template in pod_templates(thing).values():
            images |= {container["image"] for container in template["spec"]["containers"]}
    (base,) = re.findall(r"^ARG BASE=(\S+)", (DOCKER / "Dockerfile").read_text(), re.M)
    for image in {*images, base}:
        tag = image.rpartition("/")[2].partition(":")[2]
        assert re.search(r"\d", tag), image
        assert "latest" not in tag


def test_ports__of_ray_are_fixed_and_the_same_everywhere():
    head, worker = ray_flags("head"), ray_flags("worker")
    assert {*HEAD_PORTS} <= {*head}
    assert {name: head[name] for name in NODE_PORTS} == {name: worker[name] for name in NODE_PORTS}
    assert "no-monitor" in head, "else it opens 44217, without a token"
    for thing in rays().values():
        params, workers = start_params(thing)
        assert {name: params[name] for name in HEAD_PORTS} == {n: head[n] for n in HEAD_PORTS}
        assert {name: workers[name] for name in NODE_PORTS} == {n: head[n] for n in NODE_PORTS}
        assert params["num-cpus"] == head["num-cpus"] == "0"
        assert params["no-monitor"] == "true"


def test_ports__are_apart_from_those_that_are_not_fixed():
    head = ray_flags("head")
    fixed = [int(head[name]) for name in HEAD_PORTS if not name.endswith("worker-port")]
    assert len({*fixed}) == len(fixed)
    ranges = [(int(head["min-worker-port"]), int(head["max-worker-port"]))]
    sysctl = "net.ipv4.ip_local_port_range"
    texts = {services()[name]["sysctls"][sysctl] for name in ("head", "worker", "client")}
    for thing in rays().values():
        for part in ("head", "spot"):
            (each,) = pod_templates(thing)[part]["spec"]["securityContext"]["sysctls"]
            assert each["name"] == sysctl
            texts.add(each["value"])
    (text,) = texts
    low, high = map(int, text.split())
    ranges.append((low, high))
    assert ranges[0][1] < low
    assert not [p for p in fixed for low, high in ranges if low <= p <= high]


def test_ports__stand_in_the_docs():
    text, head = DOCS.read_text(), ray_flags("head")
    numbers = {head[name] for name in HEAD_PORTS if name != "metrics-export-port"}
    numbers |= {"5000", "7070", "5432", "20000"}
    assert {each for each in numbers if each not in text} == set()


def test_ports__there_is_none_of_rays_metrics():
    off = {"RAY_enable_metrics_collection": "0", "DASHBOARD_METRIC_PORT": "-1"}
    for name in ("head", "worker"):
        assert off.items() <= services()[name]["environment"].items()
    for thing in rays().values():
        for part in ("head", "spot"):
            (container,) = pod_templates(thing)[part]["spec"]["containers"]
            given = {each["name"]: each.get("value") for each in container["env"]}
            assert off.items() <= given.items()
            assert "metrics" not in [port["name"] for port in container.get("ports", [])]


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_command__is_one_that_this_ray_knows(kind):
    words = [usual(word) for word in services()[kind]["command"]]
    assert words[:2] == ["ray", "start"]
    assert scripts.start.make_context("start", words[2:]).params["block"] is True


@pytest.mark.filterwarnings("ignore")  # MLflow's own, as its command line is imported
def test_variables__are_those_that_this_mlflow_knows(monkeypatch):
    from mlflow import cli

    environment = services()["mlflow"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, usual(value))
    command = services()["mlflow"]["command"][-1].splitlines()[-1].split()
    assert command[:3] == ["exec", "mlflow", "server"]
    params = cli.server.make_context("server", command[3:]).params
    assert params["app_name"] == "basic-auth"
    assert params["host"] == "0.0.0.0"
    assert params["port"] == 5000
    assert params["backend_store_uri"] == environment["MLFLOW_BACKEND_STORE_URI"]
    assert params["artifacts_destination"] == "s3://mlflow"
    assert "mlflow:5000" in params["allowed_hosts"].split(",")
    assert params["cors_allowed_origins"]


def test_grace__is_above_rays_drain_and_that_above_the_cells():
    profiles = [
        load_profile(path, environment={}, flags={})
        for path in (DOCKER / "lab.yaml", KUBERAY / "profile.yaml")
    ]
    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    worker = services()["worker"]
    graces = [(seconds(worker["stop_grace_period"]), float(worker["environment"][name]))]
    for thing in rays().values():
        spec = pod_templates(thing)["spot"]["spec"]
        (drain,) = [e["value"] for e in spec["containers"][0]["env"] if e["name"] == name]
        graces.append((spec["terminationGracePeriodSeconds"], float(drain)))
    for grace_s, drain_s in graces:
        assert grace_s >= drain_s + 15 > drain_s > max(each.grace_s for each in profiles)


def test_profile__fits_the_services():
    profile = load_profile(DOCKER / "lab.yaml", environment={}, flags={})
    ports = {"head": {"6379", "8265"}, "mlflow": {"5000"}, "storage": {"7070"}}
    assert profile.tracking
    assert profile.dashboard
    text = " ".join([profile.address, profile.dashboard, profile.storage, profile.tracking])
    found = re.findall(r"(head|mlflow|storage):(\d+)", text)
    assert {host for host, _ in found} == {*ports} <= {*SERVICES}
    assert all(port in ports[host] for host, port in found)
    bucket = profile.storage.removeprefix("s3://").partition("/")[0]
    assert f'"{bucket}"' in (DOCKER / "setup.py").read_text()


@pytest.mark.parametrize("path", [DOCKER / "lab.yaml", KUBERAY / "profile.yaml"])
def test_profile__can_be_submitted(path):
    profile = load_profile(path, environment={}, flags={})
    assert profile.tracking
    assert not has_keys(profile.storage)
    assert not has_keys(profile.tracking)
    assert "://" in profile.storage


def test_variables__are_listed_without_values_and_are_no_settings():
    text = (DOCKER / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    assert all(f"${{{name}:-" in text for name in used), "an empty value must count as none"
    listed = (DOCKER / "env.example").read_text().splitlines()
    names = [line for line in listed if line and not line.startswith("#")]
    assert {*names} == {f"{name}=" for name in used}
    settings = {f"ABLATION_{name.upper()}" for name in Profile.__dataclass_fields__}
    assert not used & settings


def test_mlflow__keeps_the_names_that_studies_use_where_others_are_added():
    environment = services()["mlflow"]["environment"]
    others = {
        "ABLATION_MLFLOW_HOSTS": "mlflow.lab:443",
        "ABLATION_MLFLOW_ORIGINS": "https://mlflow",
    }
    for name, usually, added in [
        ("MLFLOW_SERVER_ALLOWED_HOSTS", "mlflow:5000", "mlflow.lab:443"),
        ("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "http://mlflow:5000", "https://mlflow"),
    ]:
        assert {usually, added} <= {*usual(environment[name], **others).split(",")}
        assert usually in usual(environment[name]).split(",")


def test_docs__are_linked():
    assert "(deploy.md)" in (ROOT / "docs" / "cluster.md").read_text()
