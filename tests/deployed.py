"""Reads what starts a cluster: compose.yaml as it is where nothing is set, and Ray's objects."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from ruamel.yaml import YAML

__all__ = [
    "DOCKER",
    "HEAD_PORTS",
    "KUBERAY",
    "NODE_PORTS",
    "ROOT",
    "documents",
    "pod_templates",
    "ray_flags",
    "rays",
    "script",
    "seconds",
    "services",
    "start_params",
    "usual",
]

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
KUBERAY = DOCKER / "kuberay"

NODE_PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "min-worker-port",
    "max-worker-port",
)
HEAD_PORTS = (*NODE_PORTS, "port", "dashboard-port", "ray-client-server-port")


def documents(path: Path) -> list[Any]:
    """All of a YAML file, read without its tags."""
    return [*YAML(typ="safe", pure=True).load_all(path)]


def script(name: str) -> ModuleType:
    """A script of docker/, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def services() -> dict[str, Any]:
    (compose,) = documents(DOCKER / "compose.yaml")
    found: dict[str, Any] = compose["services"]
    return found


def usual(text: Any, **given: str) -> str:
    """A value of compose.yaml as it is where only what is given is set."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: given.get(m[1], m[2]), str(text))


def ray_flags(service: str) -> dict[str, str]:
    """Flags of `ray start` in compose.yaml, by name."""
    words = [usual(word) for word in services()[service]["command"]]
    split = [word[2:].partition("=") for word in words if word.startswith("--")]
    return {name: value for name, _, value in split}


def rays() -> dict[str, Any]:
    """The RayCluster and the RayJob, by the names of their files."""
    return {name: documents(KUBERAY / f"{name}.yaml")[0] for name in ("raycluster", "rayjob")}


def start_params(thing: Any) -> tuple[dict[str, str], dict[str, str]]:
    """What KubeRay starts the head and the workers with."""
    cluster = thing["spec"].get("rayClusterSpec", thing["spec"])
    (workers,) = cluster["workerGroupSpecs"]
    return cluster["headGroupSpec"]["rayStartParams"], workers["rayStartParams"]


def pod_templates(thing: Any) -> dict[str, Any]:
    """Templates of the pods of a RayCluster or a RayJob, by what they are for."""
    spec = thing["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in spec:
        found["submitter"] = spec["submitterPodTemplate"]
    return found


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])
