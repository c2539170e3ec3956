"""Looks at a place before a study is sent there: a finding for each part, and what to do about it.

Each part is tried for real: something is written and read again, MLflow is told of a run, every
node is asked. What studies have written is left alone.
"""

import json
import os
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from ablation.address import masked, public
from ablation.examined import Examination, Questions, examine, versions
from ablation.executors.connection import connected
from ablation.executors.jobs import Jobs
from ablation.executors.probe import Node, ask_nodes
from ablation.executors.room import slots
from ablation.layout import LostPlaceError, PlaceError
from ablation.mlflow_server import TRACKING_ERRORS, try_out
from ablation.profile import Profile
from ablation.storage import Storage, StorageError
from ablation.submit import dashboard_of, sent

__all__ = ["SENDER", "Finding", "about_nodes", "diagnose", "read_findings"]

_GIB = 2**30
_LEAST_SHARED = _GIB
"""Of bytes, for the batches that loaders hand over; Docker gives a container 64 MiB."""

SENDER = "ABLATION_SENDER"
"""The variable with the versions of whoever sent a doctor to the cluster, and with the name of a
file that they have written to the storage."""

_ANSWER_WITHIN_S = 180.0
_LOCK = "Install the same `requirements.lock` on both, or start both from one image."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of a part, and what to do about it; nothing to do where all is well."""

    part: str
    found: str
    remedy: str = ""


def diagnose(profile: Profile, *, trainer: str) -> Iterator[Finding]:
    """Findings about this machine, the storage, MLflow, and every node of the cluster."""
    mine = versions()
    yield Finding(part="this machine", found=_listed(mine))
    mine, theirs = json.loads(os.environ.get(SENDER, "null")) or (mine, "")
    mark = f".doctor-{secrets.token_hex(8)}"
    finding, storage = _storage(profile.storage, mark, theirs)
    yield finding
    try:
        yield _mlflow(profile, storage.local if storage else None)
        questions = Questions(
            data=profile.place.data,
            storage=storage,
            mark=mark,
            notice=profile.notice,
            trainer=trainer,
        )
        yield from _cluster(profile, questions, mine)
    finally:
        if storage is not None:
            with suppress(StorageError):
                storage.remove(mark)


def _storage(uri: str, mark: str, theirs: str) -> tuple[Finding, Storage | None]:
    """A finding, and the storage where it can be used; `theirs` is what must be there already."""
    storage, began = None, time.monotonic()
    try:
        storage = Storage.open(uri)
        storage.write(mark, b"Another machine looks for this.")
        storage.check_writable(keep={})
        if theirs and storage.read(theirs) is None:
            raise StorageError(f"{storage.uri} is not what lies there for whoever asks.")
    except StorageError as error:
        if storage is not None:
            with suppress(StorageError):
                storage.remove(mark)
        remedy = "Check the address, the credentials in the environment, who may write there, and "
        remedy += "that one disk is mounted."
        return Finding(part="storage", found=str(error), remedy=remedy), None
    took_ms = 1000 * (time.monotonic() - began)
    return Finding(
        part="storage", found=f"{storage.uri} can be written and read ({took_ms:.0f} ms)"
    ), storage


def _mlflow(profile: Profile, local: Path | None) -> Finding:
    uri, embedded = profile.mlflow(local)
    if embedded is not None:
        return Finding(part="MLflow", found=f"the embedded store at {uri}")
    try:
        theirs = try_out(uri)
    except TRACKING_ERRORS as error:
        return Finding(
            part="MLflow",
            found=f"{public(uri)} does not take a run: {masked(_line(error), uri)}",
            remedy="Give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a user who may "
            "make experiments, and see that the server allows this host name.",
        )
    mine = version("mlflow")
    if theirs.split(".")[:1] != mine.split(".")[:1]:
        found = f"{public(uri)} is of MLflow {theirs}, and this machine has {mine}"
        return Finding(part="MLflow", found=found, remedy="Install the same major version on both.")
    return Finding(part="MLflow", found=f"{public(uri)} of version {theirs} takes runs")


def _cluster(profile: Profile, questions: Questions, mine: Mapping[str, str]) -> Iterator[Finding]:
    """Of the cluster, asked from here where this is a node of it, else by a job on it."""
    if profile.address in ("local", "auto") and not profile.dashboard:
        yield from _nodes(profile, questions, mine)
        return
    try:
        jobs = Jobs.at(dashboard_of(profile))
    except PlaceError as error:
        found, _, remedy = str(error).partition(". ")
        yield Finding(part="dashboard", found=found, remedy=remedy)
        yield from _nodes(profile, questions, mine)
    else:
        yield Finding(part="dashboard", found=f"{jobs.address} takes jobs")
        yield from _by_job(profile, questions, jobs, mine)


def _by_job(
    profile: Profile, questions: Questions, jobs: Jobs, mine: Mapping[str, str]
) -> Iterator[Finding]:
    """What a doctor on the head finds, whose nodes are to have the versions and storage of here."""
    job = f"doctor-{secrets.token_hex(4)}"
    ours = ["python", "-m", "ablation", "doctor", "--on", "profile.yaml"]
    command = shlex.join([*ours, "--trainer", questions.trainer])
    said: list[str] = []
    try:
        with TemporaryDirectory(prefix="ablation-") as folder:
            (Path(folder) / "profile.yaml").write_text(sent(profile), encoding="utf-8")
            sender = json.dumps([dict(mine), questions.mark if questions.storage else ""])
            environment = {"PYTHONUNBUFFERED": "1", SENDER: sender}
            jobs.submit(job, command, folder=Path(folder), environment=environment)
        jobs.follow(job, said.append)
        ended = jobs.look(job)
    except LostPlaceError as error:
        found, _, remedy = str(error).partition(". ")
        yield Finding(part="cluster", found=found, remedy=remedy)
        return
    lines = "".join(said).splitlines()
    findings = [*read_findings(lines)]
    yield from findings
    # Of a crash Python makes a 1, too.
    code, last = int(any(each.remedy for each in findings)), (lines or ["it said nothing"])[-1]
    if not findings or ended is None or ended.code != code:
        yield Finding(
            part="cluster",
            found=f"its head's doctor did not come to its end: {last}",
            remedy="See that the package is installed there: `ablation --version` says which.",
        )


def read_findings(lines: Sequence[str]) -> Iterator[Finding]:
    """Findings as the command line prints them; what else a job says is left out."""
    for line, after in zip(lines, [*lines, ""][1:], strict=True):
        mark, part, found = line[:5], *line[5:].partition(": ")[::2]
        if mark in ("ok   ", "MEND "):
            remedy = after.strip() if mark == "MEND " else ""
            yield Finding(part=f"on the head, {part}", found=found, remedy=remedy)


def _nodes(profile: Profile, questions: Questions, mine: Mapping[str, str]) -> Iterator[Finding]:
    try:
        with connected(profile.layout) as layout:
            nodes = ask_nodes(examine, questions, within_s=_ANSWER_WITHIN_S)
            room = slots(layout)
    except (PlaceError, LostPlaceError) as error:
        found, _, remedy = str(error).partition(". ")
        yield Finding(part="cluster", found=found, remedy=remedy)
        return
    most = "" if layout.concurrency is None else f"; concurrency is {layout.concurrency}"
    found = f"{layout.address} lets this process in, and has room for {room} cell(s) at a time"
    yield Finding(part="cluster", found=f"{found} of {layout.least} worker(s){most}")
    yield from about_nodes(nodes, profile, mine)


def about_nodes(
    nodes: Iterable[Node[Examination]], profile: Profile, mine: Mapping[str, str]
) -> Iterator[Finding]:
    """What is wrong with each node, or that nothing is; `mine` are this machine's versions."""
    seen: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        findings = [*_node(node, profile, mine, seen)]
        yield from findings or [Finding(part=f"node {node.address}", found=_well(node))]


def _node(
    node: Node[Examination],
    profile: Profile,
    mine: Mapping[str, str],
    seen: dict[str, tuple[str, ...]],
) -> Iterator[Finding]:
    """What is wrong with a node; `seen` holds what the nodes before it have of each data set."""
    say, answer = partial(Finding, part=f"node {node.address}"), node.answer
    if isinstance(answer, str):
        remedy = "See that it has the package: `ablation --version` there says which."
        yield say(found=f"cannot be asked: {answer}", remedy=remedy)
        return
    if unlike := {name: has for name, has in answer.versions.items() if has != mine.get(name, has)}:
        found = (
            f"it has {_listed(unlike)}, and this machine {_listed({n: mine[n] for n in unlike})}"
        )
        yield say(found=found, remedy=_LOCK)
    if profile.image not in (None, answer.image):
        found = f"it runs {answer.image or 'no image that says its name'}, and not {profile.image}"
        yield say(found=found, remedy="Start it from that image, or correct `image`.")
    for name, top in answer.data.items():
        at = profile.data[name]
        if top is None:
            remedy = "Copy it there, mount it at the same path, or name another with --data."
            yield say(found=f"{name} is not at {at}", remedy=remedy)
        elif seen.setdefault(name, top) != top:
            found = f"{at} holds {len(top)} names, not those of the other nodes' {name}"
            yield say(found=found, remedy="All nodes must have the same data at this path.")
    if answer.storage:
        remedy = "All nodes must reach one storage: a disk that all mount, or a URI with its keys."
        yield say(found=f"storage: {answer.storage}", remedy=remedy)
    if answer.notice:
        remedy = "Correct `notice`, or leave it out: drains and SIGTERM are heard without it."
        at = public(profile.notice or "")
        yield say(found=f"{at} does not answer: {answer.notice}", remedy=remedy)
    gpus = int(node.resources.get("GPU", 0))
    if isinstance(answer.devices, str):
        remedy = "Install what it needs there."
        yield say(found=f"the trainer cannot look for GPUs: {answer.devices}", remedy=remedy)
    elif answer.devices != gpus:
        found = f"Ray counts {gpus} GPUs, and the trainer can use {answer.devices}"
        remedy = "Start Ray with the GPUs that are there, and install a torch for their driver."
        yield say(found=found, remedy=remedy)
    shared = answer.shared_memory
    if profile.loaders and shared is not None and shared < _LEAST_SHARED:
        found = f"/dev/shm has {shared / _GIB:.2f} GiB free, too few for loader processes"
        yield say(found=found, remedy="Give containers more (--shm-size=4g), or set loaders to 0.")


def _well(node: Node[Examination]) -> str:
    """What there is of a node that is well."""
    cpus, gpus = (node.resources.get(kind, 0) for kind in ("CPU", "GPU"))
    data = node.answer.data if isinstance(node.answer, Examination) else {}
    names = "".join(f", {name}" for name in data)
    return f"{cpus:g} CPUs and {gpus:g} GPUs, sees the storage{names}"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
