"""What befalls a study: each kind picks its victim and strikes, or finds none and says so."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, TypeAlias

from chaos.nodes import Nodes
from chaos.processes import alive, end, parent
from chaos.proxy import Fault
from chaos.work import Step
from chaos.world import GRACE_S, World

__all__ = ["FAULTS", "Kind", "NoVictimError"]

_NOTICED_S = 4.0
"""A notice is seen within 2 s, and each step is saved from then on."""


class NoVictimError(Exception):
    """There is nothing now that this fault could befall."""


Strike: TypeAlias = Callable[[World, Mapping[str, Step], Random], None]
"""Befalls trainings at work, given by their last steps; it returns when the harm is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of fault: it may cost so many checkpoint intervals, and so many steps besides.

    One that is `for_all` stops every training, if not at once: workers outlive their driver for
    some seconds.
    """

    strike: Strike
    intervals: int = 1
    besides: int = 1
    for_all: bool = False
    kills: bool = True
    """Whether it ends a training (unless that has just ended by itself)."""


def _lead(at_work: Mapping[str, Step], random: Random) -> tuple[str, Step]:
    return random.choice(sorted(at_work.items()))


def _kill_worker(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    which, lead = _lead(at_work, random)
    recent = {s.pid for s in world.steps()[-200:] if s.which == which and alive(s.pid)}
    end([random.choice(sorted(recent | {lead.pid}))])


def _kill_in_commit(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """Kill a lead between the first file of a checkpoint and its commit object."""
    which, lead = _lead(at_work, random)
    folder = world.folder / "ledger" / "stages" / world.stage(which) / "checkpoints"
    limit = time.monotonic() + 10
    while time.monotonic() < limit and alive(lead.pid):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if any("." not in name and f"{name}.json" not in names for name in names):
            end([lead.pid])
            return
    raise NoVictimError


def _kill_titled(title: str, world: World, at_work: Mapping[str, Step], random: Random) -> None:
    victims = world.titled(title)
    if not victims:
        raise NoVictimError
    end([random.choice(sorted(victims))])


def _kill_driver(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    driver = world.driver()
    if driver is None:
        raise NoVictimError
    end([driver])


def _kill_driver_twice(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """A driver is killed, and the next one as it begins: at any moment of that."""
    _kill_driver(world, at_work, random)
    limit = time.monotonic() + 60
    while (again := world.driver()) is None and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(random.uniform(0, 12))
    if again is not None and alive(again):
        end([again])


def _terminate_worker(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """SIGTERM to a lead, which saves, goes on, and ends after its grace."""
    _, lead = _lead(at_work, random)
    end([lead.pid], signal.SIGTERM, within_s=GRACE_S + 60)


def _terminate_driver(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    code = world.stop(signal.SIGTERM)
    assert code == 130, f"A driver that is told to end must end with 130, got {code}."
    world.start()


def _notice(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """A notice on the machine, then the end of a worker without another word."""
    _, lead = _lead(at_work, random)
    world.notice.touch()
    try:
        time.sleep(_NOTICED_S)
        if not alive(lead.pid):
            raise NoVictimError
        end([lead.pid])
    finally:
        world.notice.unlink()


def _damage(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """A bit of the newest checkpoint flips, and its writer is killed."""
    which, lead = _lead(at_work, random)
    os.kill(lead.pid, signal.SIGSTOP)
    try:
        folder = world.folder / "ledger" / "stages" / world.stage(which) / "checkpoints"
        commits = sorted(folder.glob("*.json"), key=_step_of)
        if len(commits) < 2:
            raise NoVictimError
        (file,) = (f for f in commits[-1].with_suffix("").rglob("*") if f.is_file())
        content = bytearray(file.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(content)
    except NoVictimError:
        os.kill(lead.pid, signal.SIGCONT)
        raise
    end([lead.pid])


def _step_of(commit: Path) -> int:
    return int(commit.name.partition("-")[0])


def _second_driver(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """Another driver comes to the same study, and is killed after a while."""
    other = world.launch("run", "--inline")
    time.sleep(random.uniform(3, 12))
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()


def _network(
    which: str, kind: str, world: World, at_work: Mapping[str, Step], random: Random
) -> None:
    """Requests to the storage or to MLflow fail for some seconds."""
    proxy = world.network.get(which)
    if proxy is None:
        raise NoVictimError
    lasting = random.uniform(1, 6)
    match kind:
        case "refuse" | "error":
            proxy.faults = [Fault(kind)]
        case "delay":
            proxy.faults = [Fault("delay", seconds=random.uniform(0.2, 3))]
        case _:
            proxy.faults = [Fault(kind, chance=0.3)]  # type: ignore[arg-type]
    time.sleep(lasting)
    proxy.faults = []


def _away(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """The disk of the ledger is away for some seconds, and its mount point is empty."""
    ledger = world.folder / "ledger"
    hidden = ledger.rename(world.folder / "hidden")
    ledger.mkdir()
    time.sleep(random.uniform(1, 6))
    mount = ledger.rename(world.folder / f"mount-{time.time_ns()}")
    hidden.rename(ledger)
    assert not (mount / "stages").exists(), "work was begun anew"


def _node(world: World, at_work: Mapping[str, Step], random: Random) -> tuple[Nodes, int]:
    """The nodes, and the raylet of one with a worker."""
    _, lead = _lead(at_work, random)
    raylet = parent(lead.pid)
    if world.nodes is None or not raylet:
        raise NoVictimError
    return world.nodes, raylet


def _kill_raylet(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """The raylet of a worker's node is killed; another node comes."""
    nodes, raylet = _node(world, at_work, random)
    nodes.kill_raylet(raylet)
    nodes.add()


def _lose_node(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """A worker's node loses its power; another one comes."""
    nodes, raylet = _node(world, at_work, random)
    nodes.lose(raylet)
    nodes.add()


def _drain(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """Ray drains a worker's node, which loses its power some seconds later; another one comes."""
    nodes, raylet = _node(world, at_work, random)
    nodes.drain(raylet, seconds=10)
    time.sleep(_NOTICED_S)
    nodes.lose(raylet)
    nodes.add()


def _kill_head(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """The head alone is killed: workers go on without it until their nodes have found out."""
    if world.nodes is None:
        raise NoVictimError
    world.nodes.replace_head()


def _lose_cluster(world: World, at_work: Mapping[str, Step], random: Random) -> None:
    """The whole cluster loses its power, head first; another one comes to the same address."""
    if world.nodes is None:
        raise NoVictimError
    world.nodes.cut()
    world.nodes.start()


_NETWORK: Final = {
    f"{which}: {kind}": Kind(strike=partial(_network, which, kind), intervals=0, kills=False)
    for which, kinds in (
        ("storage", ("refuse", "error", "delay", "cut upload", "flip upload", "cut download")),
        ("MLflow", ("refuse", "error", "delay", "lose")),
    )
    for kind in kinds
}

FAULTS: Final[Mapping[str, Kind]] = {
    "SIGKILL of a worker": Kind(strike=_kill_worker),
    "SIGKILL inside a commit": Kind(strike=_kill_in_commit, intervals=2),
    "SIGKILL of the trial": Kind(strike=partial(_kill_titled, "ray::ImplicitFunc")),
    "SIGKILL of the controller": Kind(strike=partial(_kill_titled, "ray::TrainController")),
    "SIGKILL of the driver": Kind(strike=_kill_driver, for_all=True),
    "SIGKILL of two drivers": Kind(strike=_kill_driver_twice, intervals=2, for_all=True),
    "SIGTERM to a worker": Kind(strike=_terminate_worker, intervals=0),
    "SIGTERM to the driver": Kind(strike=_terminate_driver, intervals=0, for_all=True),
    "notice, then SIGKILL": Kind(strike=_notice, intervals=0),
    "checkpoint damaged, then SIGKILL": Kind(strike=_damage, intervals=2),
    "a second driver": Kind(strike=_second_driver, intervals=0, kills=False),
    "disk away": Kind(strike=_away, intervals=0, kills=False),
    "SIGKILL of a raylet": Kind(strike=_kill_raylet),
    "node lost": Kind(strike=_lose_node),
    "drain with notice": Kind(strike=_drain, intervals=0),
    "SIGKILL of the head": Kind(strike=_kill_head, for_all=True),
    "all nodes lost": Kind(strike=_lose_cluster, for_all=True),
    **_NETWORK,
}
