"""A storage that is away for a minute, and a disk that fills, in the middle of a study."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from chaos.marks import LONG_FORM
from chaos.proxy import Fault, Proxy
from chaos.servers import S3_KEYS, s3_server, s3_uri
from chaos.verdict import faults_of
from chaos.world import Scale, World
from leaks import MLFLOW_LEAKS

pytestmark = [*LONG_FORM, *MLFLOW_LEAKS]

_OUTAGE_S = 60.0
_WITHIN_S = 400.0
_SCALE = Scale(steps=150, sleep_s=0.1, seeds=1)
_DISK_MB = 64


class Outage(NamedTuple):
    """A world, what takes its storage away and what brings it back, and what people are told."""

    world: World
    begin: Callable[[], object]
    end: Callable[[], object]
    told: str


@contextmanager
def _unmounted(folder: Path, study: Path) -> Iterator[Outage]:
    ledger, hidden = folder / "ledger", folder / "hidden"

    def begin() -> None:
        ledger.rename(hidden)
        ledger.mkdir()

    def end() -> None:
        ledger.rename(folder / "mount")
        hidden.rename(ledger)

    yield Outage(World(folder=folder, study=study), begin, end, "is its disk mounted?")


@contextmanager
def _server_down(folder: Path, study: Path) -> Iterator[Outage]:
    with s3_server(folder) as server, Proxy(server, seed=0) as proxy:
        world = World(
            folder=folder,
            study=study,
            storage=s3_uri(proxy.address, "l"),
            direct=s3_uri(server, "l"),
            tracking=f"sqlite:///{folder / 'mlflow.db'}",
            direct_tracking=f"sqlite:///{folder / 'mlflow.db'}",
        )

        def begin() -> None:
            proxy.faults = [Fault("refuse")]

        def end() -> None:
            proxy.faults = []

        yield Outage(world, begin, end, "Waiting for the storage")


@contextmanager
def _disk_full(folder: Path, study: Path) -> Iterator[Outage]:
    ledger = folder / "ledger"
    ledger.mkdir()
    ballast = ledger / "ballast"
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(ledger)]
    subprocess.run(command, check=True)
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", str(ledger)], check=True)

        def begin() -> None:
            try:
                with ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            except OSError:
                pass

        yield Outage(World(folder=folder, study=study), begin, ballast.unlink, "No space left")


@pytest.mark.parametrize("kind", [_unmounted, _server_down, _disk_full])
def test_study__waits_for_its_storage_says_so_and_loses_nothing(kind, tmp_path, monkeypatch):
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    quiet, folder = tmp_path / "quiet", tmp_path / "struck"
    quiet.mkdir()
    folder.mkdir()
    undisturbed = World(folder=quiet, study=_SCALE.write(quiet))
    assert undisturbed.launch("run", "--inline").wait(_WITHIN_S) == 0
    with kind(folder, _SCALE.write(folder)) as (world, begin, end, told):
        driver = world.launch("run")
        try:
            limit = time.monotonic() + _WITHIN_S
            while not any(step.number > 30 for step in world.at_work().values()):
                assert driver.poll() is None, world.log.read_text()
                assert time.monotonic() < limit, world.log.read_text()
                time.sleep(0.1)
            begin()
            time.sleep(_OUTAGE_S)
            assert driver.poll() is None, world.log.read_text()
            end()
            assert driver.wait(_WITHIN_S) == 0, world.log.read_text()
        finally:
            driver.kill()
            driver.wait()
        said = world.log.read_text()
        assert told in said
        assert "The storage answers again after" in said
        assert "Traceback" not in said
        subprocess.run(world.command("sync"), cwd=folder, env=world.environment, check=True)
        assert list(faults_of(world, undisturbed.ledger)) == [], said
        ledger = world.ledger
        ends = [a.ended for d in world.plan.stages for a in ledger.stage(d).attempts()]
        assert ends == ["finished"] * len(world.plan.stages), said
