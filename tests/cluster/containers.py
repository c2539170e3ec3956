"""Containers without a Docker engine: services of a compose file, run by `runc` on hosts.

What a service says of its command, user, rights, root, environment, secrets, configs, volumes,
memory and CPUs is what it has; what is published on the machine is not. The root is that of an
image where there is one (a folder), else this machine's programs and this Python's environment.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from cluster.network import PREFIX, Host
from deployed import DOCKER, ROOT

__all__ = ["Container", "host_root", "image_environment", "sweep"]

_STATE = ("runc", "--root", "/run/abl-runc")
_INIT = "/run/docker-init"
_UNITS = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30}
_PERIOD_US = 100_000
_BEGIN_AGAIN_AFTER_S = 1.0
_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
]


def host_root(folder: Path) -> Path:
    """A root of this machine's programs, in which `/opt/ablation` is this Python's environment."""
    for name in ("etc", "home/ablation/.mlflow", "opt", "run", "usr", "var", "data", "studies"):
        (folder / name).mkdir(parents=True)
    (folder / "var/lib/postgresql/data").mkdir(parents=True)
    os.chown(folder / "var/lib/postgresql/data", 999, 999)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "var/run").symlink_to("/run")
    (folder / "opt/ablation").symlink_to(sys.prefix)
    shutil.copytree("/etc/alternatives", folder / "etc/alternatives", symlinks=True)
    for name in ("nsswitch.conf", "ld.so.cache"):
        shutil.copy(f"/etc/{name}", folder / "etc")
    users = {"root": 0, "postgres": 999, "ablation": 1000}
    lines = [f"{name}:x:{number}:{number}::/home/{name}:/bin/sh" for name, number in users.items()]
    (folder / "etc/passwd").write_text("\n".join([*lines, ""]))
    return folder


def image_environment() -> dict[str, str]:
    """What the image has in its environment."""
    text = (DOCKER / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    asked = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.M))
    (line,) = re.findall(r"^ENV (.*)$", text, re.M)
    named = dict(word.split("=", 1) for word in shlex.split(line))
    path = "/usr/local/bin:/usr/bin:/bin"
    return {
        name: Template(value).safe_substitute(asked, PATH=path) for name, value in named.items()
    }


def sweep() -> None:
    """Remove all containers that are called as ours are."""
    listed = subprocess.run([*_STATE, "list", "--quiet"], capture_output=True, text=True).stdout
    for name in listed.split():
        if name.startswith(PREFIX):
            subprocess.run([*_STATE, "delete", "--force", name], capture_output=True)


@dataclass(slots=True)
class Container:
    """A service's container on a host; `files` are the compose file's secrets and configs."""

    name: str
    service: Mapping[str, Any]
    host: Host
    home: Path
    root: Path
    environment: Mapping[str, str]
    files: Mapping[str, Path]
    names: Path
    """What is mounted as `/etc/hosts`."""
    _wanted: bool = False
    _attended: threading.Thread | None = None
    _log: Path = field(init=False)

    def __post_init__(self) -> None:
        self._log = self.home / f"{self.name}.log"

    def start(self) -> None:
        """Start it, and again where it ends and its service says so."""
        self._wanted = True
        self._attended = threading.Thread(target=self._attend, name=self.name, daemon=True)
        self._attended.start()

    def _attend(self) -> None:
        again = self.service.get("restart") == "unless-stopped"
        with self._log.open("ab") as log:
            while self._wanted:
                ended = self._run(log).returncode
                log.write(f"== {self.name} has ended with {ended}\n".encode())
                log.flush()
                self._wanted = self._wanted and again
                time.sleep(_BEGIN_AGAIN_AFTER_S)

    def run(self, within_s: float | None = None) -> "subprocess.CompletedProcess[bytes]":
        """Run it to its end."""
        return self._run(subprocess.PIPE, within_s)

    def _run(self, out: Any, within_s: float | None = None) -> "subprocess.CompletedProcess[bytes]":
        bundle = self.home / "bundles" / self.name
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self._configuration(), indent=1))
        subprocess.run([*_STATE, "delete", "--force", self._id], capture_output=True)
        command = [*_STATE, "run", "--bundle", str(bundle), self._id]
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE if out == subprocess.PIPE else subprocess.STDOUT,
                timeout=within_s,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.lose()
            raise

    def exec(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it."""
        inside = [*_STATE, "exec", self._id, *command]
        return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=120)

    def wait_until_well(self, within_s: float) -> None:
        """Wait for its health check."""
        kind, *test = self.service["healthcheck"]["test"]
        assert kind == "CMD"
        limit = time.monotonic() + within_s
        while (done := self.exec(*test)).returncode:
            if time.monotonic() > limit:
                said = self._log.read_text(errors="replace")[-3000:]
                raise TimeoutError(f"{self.name} is not well: {done.stderr}\n{said}")
            time.sleep(0.5)

    def crash(self) -> None:
        """Kill all that is in it; its service may begin again."""
        subprocess.run([*_STATE, "kill", "--all", self._id, "KILL"], check=True)

    def stop(self) -> None:
        """Ask it to end, and wait as long as its service says."""
        self._wanted = False
        subprocess.run([*_STATE, "kill", self._id, "TERM"], check=False, capture_output=True)
        if self._attended:
            self._attended.join(float(self.service["stop_grace_period"].removesuffix("s")))
        self.lose()

    def lose(self) -> None:
        """Its machine loses its power."""
        self._wanted = False
        subprocess.run([*_STATE, "delete", "--force", self._id], capture_output=True)
        if self._attended:
            self._attended.join(30.0)

    @property
    def _id(self) -> str:
        return f"{PREFIX}{self.name}"

    def _configuration(self) -> dict[str, Any]:
        what = self.service
        user, group = map(int, what["user"].split(":"))
        rights = [f"CAP_{name}" for name in what.get("cap_add", [])]
        said = what.get("environment", {})
        environment = {**self.environment, **{name: str(value) for name, value in said.items()}}
        spaces: list[dict[str, str]] = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts")]
        spaces.append({"type": "network", "path": f"/run/netns/{self.host.space}"})
        return {
            "ociVersion": "1.0.2",
            "hostname": self.name,
            "root": {"path": str(self.root), "readonly": what["read_only"]},
            "mounts": self._mounts(),
            "process": {
                "terminal": False,
                "user": {"uid": user, "gid": group},
                "args": [
                    *([_INIT, "--"] if what.get("init") else []),
                    *map(str, what.get("entrypoint", [])),
                    *map(str, what.get("command", [])),
                ],
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": what.get("working_dir", environment.get("HOME", "/")),
                "noNewPrivileges": "no-new-privileges:true" in what["security_opt"],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
                "rlimits": self._limits(),
            },
            "linux": {
                "namespaces": spaces,
                "sysctl": {name: str(value) for name, value in what.get("sysctls", {}).items()},
                "resources": self._resources(),
                "cgroupsPath": f"/ablation/{self._id}",
            },
        }

    def _limits(self) -> list[dict[str, Any]]:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        asked = min(self.service.get("ulimits", {}).get("nofile", most), most)
        return [{"type": "RLIMIT_NOFILE", "soft": asked, "hard": asked}]

    def _resources(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "mem_limit" in self.service:
            found["memory"] = {"limit": _size(self.service["mem_limit"])}
        if "cpus" in self.service:
            quota = int(float(self.service["cpus"]) * _PERIOD_US)
            found["cpu"] = {"quota": quota, "period": _PERIOD_US}
        return found

    def _mounts(self) -> list[dict[str, Any]]:
        what, shared = self.service, _size(self.service.get("shm_size", "64mb"))
        options = ["nosuid", "mode=1777", f"size={shared}"]
        memory = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options}
        found = [*_MOUNTS, memory]
        for text in what.get("tmpfs", []):
            path, _, how = text.partition(":")
            found.append(_tmpfs(path, how))
        for text in what.get("volumes", []):
            found.append(self._volume(text))
        if self.root.parent == self.home:  # of this machine's programs
            kept = ("/usr", sys.base_prefix, sys.prefix, str(ROOT))
            found += [_bind(Path(path), path, "ro") for path in kept]
        found.append(_bind(Path("/usr/bin/tini-static"), _INIT, "ro"))
        found.append(_bind(self.names, "/etc/hosts", "ro"))
        found.append(_bind(Path("/dev/null"), "/etc/resolv.conf", "ro"))  # all names are above
        for kind, folder in (("secrets", "/run/secrets/"), ("configs", "/")):
            for each in what.get(kind, []):
                given = {"source": each} if isinstance(each, str) else each
                target = given.get("target", given["source"])
                target = target if target.startswith("/") else folder + target
                found.append(_bind(self.files[given["source"]], target, "ro"))
        return found

    def _volume(self, text: str) -> dict[str, Any]:
        source, _, rest = text.rpartition(":") if ":" in text else ("", "", "")
        if not source:  # a volume of its own
            return _bind(self._folder(f"{self.name}{text.replace('/', '-')}", text), text)
        if rest == "ro":
            source, _, target = source.rpartition(":")
        else:
            target = rest
        folder = Path(source) if source.startswith("/") else self._folder(source, target)
        return _bind(folder, target, *(["ro"] if rest == "ro" else []))

    def _folder(self, volume: str, target: str) -> Path:
        """A volume's folder; a new one belongs to whom the image's own folder belongs."""
        folder = self.home / "volumes" / volume
        if not folder.exists():
            folder.mkdir(parents=True)
            if (own := self.root / target.lstrip("/")).is_dir():
                os.chown(folder, own.stat().st_uid, own.stat().st_gid)
                folder.chmod(own.stat().st_mode & 0o7777)
        return folder


def _bind(source: Path, target: str, *how: str) -> dict[str, Any]:
    return {
        "destination": target,
        "type": "bind",
        "source": os.path.realpath(source),
        "options": ["rbind", *how],
    }


def _tmpfs(path: str, how: str) -> dict[str, Any]:
    options = ["nosuid", *filter(None, how.split(","))]
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}


def _size(text: Any) -> int:
    number, unit = re.fullmatch(r"(\d+)([a-z]*)", str(text).lower()).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit or "b"]
