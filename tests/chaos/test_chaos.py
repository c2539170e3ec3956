"""A study under fire ends as one that nothing disturbed; seeded, so that a failure replays.

`make chaos` sets CHAOS_FAULTS (how many in all) and CHAOS_SEED. Without, it is the short form: one
small world, each of its kinds once.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from secrets import token_hex

import pytest

from ablation.ledger import Ledger
from chaos.campaign import Cost, afflict, report
from chaos.faults import FAULTS
from chaos.nodes import Nodes
from chaos.proxy import Proxy
from chaos.servers import S3_KEYS, mlflow_server, s3_server, s3_uri
from chaos.verdict import doubled, faults_of
from chaos.world import Scale, World

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.cluster,
    # MLflow's own, of what it calls.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
]

FAULTS_IN_ALL = int(os.environ.get("CHAOS_FAULTS", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
_NETWORK = [kind for kind in FAULTS if ":" in kind]
_EVERYWHERE = ["SIGKILL of a worker", "SIGKILL of the driver", "SIGTERM to a worker"]
_MANY = ["SIGKILL of the trial", "SIGKILL of the controller"]
_ON_DISK = ["SIGKILL inside a commit", "checkpoint damaged, then SIGKILL"]
_NODES = ["SIGKILL of a raylet", "node lost", "drain with notice"]
_HEAD = ["SIGKILL of the head", "all nodes lost"]
_SCALE = Scale(steps=300, sleep_s=0.1, seeds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A kind of world, what befalls it in turn, and its share of all faults."""

    name: str
    kinds: Sequence[str]
    share: float
    workers: int = 1
    s3: bool = False
    mlflow: bool = False
    nodes: int = 0
    scale: Scale = _SCALE


SHORT = Setting(
    name="short",
    kinds=[*_ON_DISK, *_EVERYWHERE, "notice, then SIGKILL"],
    share=0,
    scale=Scale(steps=400, sleep_s=0.05, seeds=1),
)
LONG = [
    Setting(
        name="one worker, disk",
        kinds=[
            *_ON_DISK,
            *_EVERYWHERE,
            "SIGKILL of two drivers",
            "SIGTERM to the driver",
            "notice, then SIGKILL",
            "a second driver",
            "disk away",
        ],
        share=0.3,
    ),
    Setting(
        name="one worker, S3", kinds=[*_NETWORK, *_EVERYWHERE], share=0.3, s3=True, mlflow=True
    ),
    Setting(
        name="two workers, disk",
        kinds=[
            *_MANY,
            "SIGKILL of a worker",
            "SIGTERM to a worker",
            "notice, then SIGKILL",
            "SIGTERM to the driver",
            "SIGKILL of the driver",
        ],
        share=0.15,
        workers=2,
        scale=Scale(steps=300, sleep_s=0.1, seeds=1),
    ),
    Setting(
        name="three nodes, one worker",
        kinds=[
            *_NODES,
            *_HEAD,
            "SIGKILL of a worker",
            "SIGKILL of the driver",
            "SIGKILL of two drivers",
        ],
        share=0.2,
        nodes=3,
    ),
    Setting(
        name="three nodes, two workers",
        kinds=[*_NODES, *_MANY, *_HEAD, "SIGKILL of a worker"],
        share=0.05,
        nodes=3,
        workers=2,
        scale=Scale(steps=300, sleep_s=0.1, seeds=1),
    ),
]


@dataclass(slots=True)
class Tally:
    costs: list[Cost] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    tally = Tally()
    yield tally
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    terminal.write_line("\n" + report(tally.costs, tally.struck, tally.recovered))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator["dict[Scale, Undisturbed]"]:
    folder = tmp_path_factory.mktemp("undisturbed")
    scales = {setting.scale for setting in _settings()}
    found = {scale: Undisturbed(scale, folder / str(n)) for n, scale in enumerate(scales)}
    yield found
    for each in found.values():
        each.running.kill()
        each.running.wait()


class Undisturbed:
    """The study as nothing disturbs it, in a process beside all others."""

    def __init__(self, scale: Scale, folder: Path) -> None:
        folder.mkdir()
        self.world = World(folder=folder, study=scale.write(folder))
        self.running = self.world.launch("run", "--inline")

    def ledger(self) -> Ledger:
        assert self.running.wait(1200) == 0, self.world.log.read_text()
        return self.world.ledger


def _settings() -> list[Setting]:
    return LONG if FAULTS_IN_ALL else [SHORT]


@pytest.mark.parametrize("setting", _settings(), ids=lambda setting: setting.name)
def test_chaos__ends_as_if_nothing_had_happened(setting, undisturbed, tally, tmp_path, monkeypatch):
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    random = Random(f"{SEED} {setting.name}")
    left = round(setting.share * FAULTS_IN_ALL) or len(setting.kinds)
    kinds = random.sample(setting.kinds, len(setting.kinds))
    number = 0
    while left:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        with _world(setting, folder) as world:
            world.start()
            struck = 0
            for kind, costs in afflict(world, kinds, left, random, struck=tally.struck):
                struck += 1
                tally.recovered[kind] += 1
                tally.costs += costs
                print(f"{setting.name}, {number}.{struck}: {kind}: {_words(costs)}", flush=True)
                allowed = partial(
                    Cost.allowed, step_s=setting.scale.sleep_s, commit_s=2.0 * setting.s3
                )
                too_many = [cost for cost in costs if cost.repeated > allowed(cost)]
                assert not too_many, world.log.read_text()
            left -= struck
            kinds = [*kinds[struck % len(kinds) :], *kinds[: struck % len(kinds)]]
            assert world.finish(within_s=900) == 0, world.log.read_text()
            whole = undisturbed[setting.scale].ledger()
            assert [*doubled(world), *faults_of(world, whole)] == [], world.log.read_text()
            subprocess.run(world.command("sync"), cwd=folder, env=world.environment, check=True)
            assert [*faults_of(world, whole)] == [], world.log.read_text()


@pytest.mark.skipif(FAULTS_IN_ALL < 200, reason="make chaos, with 200 faults, runs it")
def test_chaos__struck_home(tally):
    """Of what kills, each kind ended a training: a fault that does nothing shows nothing."""
    hit = {cost.kind for cost in tally.costs if cost.hit}
    assert {kind for kind in tally.struck if FAULTS[kind].kills} <= hit


def _words(costs: Sequence[Cost]) -> str:
    return "; ".join(f"{c.which}: {c.repeated} again, {c.seconds:.1f} s" for c in costs)


@contextmanager
def _world(setting: Setting, folder: Path) -> Iterator[World]:
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    }
    with ExitStack() as stack:
        network: dict[str, Proxy] = {}

        def behind(name: str, address: str) -> str:
            network[name] = stack.enter_context(Proxy(address, seed=SEED))
            return network[name].address

        storage = direct = ""
        if setting.s3:
            server = stack.enter_context(s3_server(folder))
            storage, direct = s3_uri(behind("storage", server), "l"), s3_uri(server, "l")
        tracking = stack.enter_context(mlflow_server(folder)) if setting.mlflow else ""
        log = folder / "nodes.txt"
        nodes = Nodes(setting.nodes, setting.workers, environment, log) if setting.nodes else None
        world = World(
            folder=folder,
            study=setting.scale.write(folder),
            workers=setting.workers,
            nodes=stack.enter_context(nodes) if nodes else None,
            storage=storage,
            direct=direct,
            tracking=f"http://{behind('MLflow', tracking)}" if tracking else None,
            direct_tracking=f"http://{tracking}" if tracking else "",
            network=network,
            environment=environment,
        )
        stack.callback(world.clear)
        yield world
