"""The cluster of docker/compose.yaml without Docker: each service on a host of its own.

Names, addresses, ports, users, rights, secrets and commands are those of the file; `lab.yaml` says
what stands in for images that are not this project's.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from configparser import ConfigParser
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from cluster import containers, network
from cluster.containers import Container, host_root, image_environment
from cluster.network import Host, Network
from deployed import DOCKER, documents, script, usual

__all__ = ["Lab", "missing"]

_TOOLS = ("ip", "runc", "tini-static", "wget", "ceph-mon", "ceph-osd", "radosgw")
_DATABASE = Path("/usr/lib/postgresql/15/bin/postgres")
_OVER = Path(__file__).with_name("lab.yaml")
_HOSTS = ("head", "worker", "mlflow", "storage", "postgres", "setup", "keep", "client")
_UP_WITHIN_S = 300.0
_TOLD_WITHIN_S = 600.0
_ASK_EVERY_S = 5.0


def missing() -> str:
    """What this machine lacks for a lab; empty where it lacks nothing."""
    if os.geteuid():
        return "root, for network namespaces and containers"
    found = [name for name in _TOOLS if not shutil.which(name)]
    found += [] if _DATABASE.exists() else ["postgresql-15"]
    return ", ".join(found)


class Lab:
    """compose.yaml as it is where only `given` is set; with `image`, on the root of that folder."""

    def __init__(self, image: Path | None = None, **given: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ablation-lab-", dir="/var/tmp"))
        self.home.chmod(0o755)
        self.studies = self.home / "studies"
        self.studies.mkdir()
        self._secrets = self.home / "secrets"
        script("make_secrets").make(self._secrets)
        _add_tenant(self._secrets / "s3_credentials")
        folders = {"ABLATION_SECRETS": self._secrets, "ABLATION_STUDIES": self.studies}
        self._given = {name: str(path) for name, path in folders.items()} | given
        (compose,), (over,) = documents(DOCKER / "compose.yaml"), documents(_OVER)
        self._compose = self._read(_merged(compose, over))
        self._ours = self._compose["services"]["head"]["image"]
        self._programs = host_root(self.home / "programs")
        self._image = image or self._programs
        self._names = self.home / "hosts"
        self.hosts: dict[str, Host] = {}
        self._asked = count(1)
        self.containers: dict[str, Container] = {}

    def __enter__(self) -> "Lab":
        containers.sweep()
        network.sweep()
        subnets = {"cluster": ("10.77.0", True), "database": ("10.78.0", False)}
        self._networks = {n: Network(n, subnet, out) for n, (subnet, out) in subnets.items()}
        for name in _HOSTS:
            self._add_host(name)
        known = [("127.0.0.1", "localhost")]
        known += [(at, host.name) for host in self.hosts.values() for at in host.addresses.values()]
        self._names.write_text("".join(f"{address} {name}\n" for address, name in known))
        return self

    def __exit__(self, *_: object) -> None:
        for each in reversed([*self.containers.values()]):
            each.lose()
        containers.sweep()
        network.sweep()
        shutil.rmtree(self.home)

    def up(self, *services: str) -> None:
        """Start services and what they depend on, and wait until they are well."""
        for name in services:
            if name in self.containers:
                continue
            what = self._compose["services"][name]
            self.up(*what.get("depends_on", {}))
            self.containers[name] = container = self._container(name, name, self._host_of(name))
            if what.get("restart") == "no":
                done = container.run()
                if done.returncode:
                    raise RuntimeError(f"{name} has failed: {_text(done)}")
            else:
                container.start()
                if "healthcheck" in what:
                    container.wait_until_well(_UP_WITHIN_S)

    def add_worker(self, name: str) -> Container:
        """Another container of the service `worker`, which joins the cluster."""
        self.containers[name] = container = self._container(name, "worker", self._add_host(name))
        container.start()
        container.wait_until_well(_UP_WITHIN_S)
        return container

    def host(self, name: str) -> Host:
        """The host of a container."""
        return self.containers[name].host

    def ablation(
        self, *arguments: str, within_s: float = _TOLD_WITHIN_S, **environment: str
    ) -> tuple[int, str, str]:
        """What `compose run client …` ends with, prints and says."""
        return self.client("ablation", *arguments, within_s=within_s, **environment)

    def submit(self, study: str) -> str:
        """Submit one of `studies`; the submission's name."""
        code, out, err = self.ablation("submit", f"{study}.yaml")
        if code:
            raise RuntimeError(f"{out}{err}\n{self.logs()}")
        return out.partition(":")[0]

    def client(
        self, *command: str, within_s: float = _TOLD_WITHIN_S, **environment: str
    ) -> tuple[int, str, str]:
        """What another command ends with, prints and says, run where the client is."""
        program, *rest = command
        over = {"entrypoint": [program], "command": rest, "environment": environment}
        name = f"client-{next(self._asked)}"
        done = self._container(name, "client", self.hosts["client"], over).run(within_s)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def wait_until(self, what: str, *arguments: str, times: int = 1, within_s: float) -> None:
        """Repeat a command of the client until it prints something so often."""
        limit = time.monotonic() + within_s
        while (said := self.ablation(*arguments))[1].count(what) < times:
            if time.monotonic() > limit:
                raise TimeoutError(f"{what!r} is not in {said}:\n{self.logs()}")
            time.sleep(_ASK_EVERY_S)

    def logs(self) -> str:
        """The ends of all logs."""
        found = []
        for file in sorted(self.home.glob("*.log")):
            with suppress(OSError):
                found.append(f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}")
        return "\n".join(found)

    @property
    def secrets(self) -> list[str]:
        """Names of the secrets' files."""
        return sorted(path.name for path in self._secrets.iterdir())

    def secret(self, name: str) -> str:
        """What a secret's file holds."""
        return (self._secrets / name).read_text()

    def keys(self, user: str = "default") -> tuple[str, str]:
        """A user's keys for the storage."""
        parsed = ConfigParser(interpolation=None)
        parsed.read_string(self.secret("s3_credentials"))
        return parsed[user]["aws_access_key_id"], parsed[user]["aws_secret_access_key"]

    def storage(self, key: str, secret: str) -> Any:
        """A client of the storage."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.hosts['storage'].addresses['cluster']}:7070",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"
            ),
        )

    def objects(self, bucket: str = "ablation") -> list[str]:
        """What is in a bucket."""
        pages = self.storage(*self.keys()).get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def written(self) -> list[Path]:
        """Files that services have written: logs, and volumes but the storage's own."""
        own = [path for path in (self.home / "volumes").iterdir() if path.name != "objects"]
        files = [each for folder in own for each in folder.rglob("*") if each.is_file()]
        return [*files, *self.home.glob("*.log")]

    def _container(
        self, name: str, service: str, host: Host, over: Mapping[str, Any] | None = None
    ) -> Container:
        what = _merged(self._compose["services"][service], over or {})
        ours = what["image"] == self._ours
        return Container(
            name,
            what,
            host,
            self.home,
            self._image if ours else self._programs,
            image_environment() if ours else {},
            self._files,
            self._names,
        )

    @property
    def _files(self) -> dict[str, Path]:
        named = {**self._compose["secrets"], **self._compose["configs"]}
        return {name: (DOCKER / each["file"]).resolve() for name, each in named.items()}

    def _host_of(self, service: str) -> Host:
        return self.hosts.get(service) or self._add_host(service)

    def _add_host(self, name: str) -> Host:
        service = self._compose["services"].get(name, self._compose["services"]["worker"])
        networks = [self._networks[each] for each in service.get("networks", [])]
        self.hosts[name] = host = Host(name, networks)
        return host

    def _read(self, value: Any) -> Any:
        """A part of the file with its variables in place."""
        if isinstance(value, dict):
            return {key: self._read(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._read(each) for each in value]
        return usual(value, **self._given).replace("$$", "$") if isinstance(value, str) else value


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: _merged(base.get(key), each) for key, each in over.items()}}


def _add_tenant(credentials: Path) -> None:
    """Another user of the storage, who has no part in `default`'s buckets."""
    lines = ["[tenant]", f"aws_access_key_id = {secrets.token_hex(10)}"]
    lines += [f"aws_secret_access_key = {secrets.token_hex(32)}", ""]
    credentials.chmod(0o644)
    credentials.write_text(credentials.read_text() + "\n".join(lines))


def _text(done: "subprocess.CompletedProcess[bytes]") -> str:
    return (done.stdout + done.stderr).decode(errors="replace")
