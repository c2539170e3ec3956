"""A trainer that bakes, whose settings are nested and have rules; plans of the toy trainer."""

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import pytest
from pyarrow import fs

from ablation import address, lease, patience
from ablation.ledger import Ledger
from ablation.plan import Plan, plan
from ablation.problems import StudyError
from ablation.protocol import Direction, Kind, Place
from ablation.storage import Storage
from ablation.study import Study, load_study
from ablation.testing import ToyTrainer, new_ledger
from ablation.trainers import TrainerError
from chaos.proxy import Proxy


class BakeError(ValueError):
    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("bake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Oven:
    heat: float = 180.0
    racks: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not 0 < self.heat < 300:
            raise BakeError(("heat", f"must be in (0, 300), got {self.heat:g}."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bake:
    oven: Oven = field(default_factory=Oven)
    data: str = "wheat"
    minutes: int = 30
    glaze: float | tuple[float, float] = 0.0
    kind: Literal["loaf", "roll"] = "loaf"
    steam: bool = False

    def __post_init__(self) -> None:
        if self.steam and self.oven.heat > 250:
            raise BakeError(("steam", f"must be false above 250, got heat {self.oven.heat:g}."))
        if self.minutes < 1:
            raise ValueError(f"minutes must be at least 1, got {self.minutes}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    oven: Oven = field(default_factory=Oven)
    data: str = "wheat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    oven: Oven | None = None
    judges: int
    salt: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeStage:
    kind: Kind
    config_type: type[Any]

    def run(self, config: Any, /, **_: Any) -> Generator[Any, None, None]:
        yield from ()


class Bakery:
    name = "bakery"
    result_version = 1

    def stages(self) -> Mapping[str, BakeStage]:
        return {
            "bake": BakeStage(kind="train", config_type=Bake),
            "raw": BakeStage(kind="reference", config_type=Raw),
            "taste": BakeStage(kind="evaluate", config_type=Taste),
            "look": BakeStage(kind="evaluate", config_type=Taste),
        }

    def presets(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        sides = {"taste": {"judges": 3}, "look": {"judges": 1}}
        hot = {"bake": {"oven": {"heat": 280.0}}, **sides}
        return {
            "bare": {},
            "plain": sides,
            "hot": hot,
            "rack": {
                "bake": {"oven": {"heat": 280.0, "racks": [7]}},
                "raw": {"oven": {"heat": 150.0}},
                **sides,
            },
            "burnt": {"bake": {"oven": {"heat": 900}}, **sides},
        }

    def metrics(self) -> Mapping[str, Direction]:
        return {
            "taste/score": "higher",
            "taste/flaws": "lower",
            "look/score": "higher",
            "bake/loss": "lower",
        }

    def reads(self, config: Any, /) -> Mapping[str, str]:
        return {}

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        raise LookupError(name)

    def fits(self, config: Any, parent: Any, place: Place, /) -> str | None:
        return None

    def check(self, config: Any, workers: int, /) -> str | None:
        return None

    def devices(self) -> int:
        return 0


Reader = Callable[[str], Study]


def lookup(name: str) -> Bakery:
    if name != "bakery":
        raise TrainerError(f"trainer must be installed, got {name!r}. Did you mean 'bakery'?")
    return Bakery()


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Reads a study of the bakery, as the file x.yaml."""
    monkeypatch.chdir(tmp_path)

    def load(text: str) -> Study:
        Path("x.yaml").write_text(text, encoding="utf-8")
        return load_study(Path("x.yaml"), lookup=lookup)

    return load


@pytest.fixture
def problems(read: Reader) -> Callable[[str], list[str]]:
    """The lines that a study of the bakery is refused with."""

    def refuse(text: str) -> list[str]:
        with pytest.raises(StudyError) as caught:
            read(text)
        lines = str(caught.value).splitlines()
        assert lines == [str(problem) for problem in caught.value.problems]
        return lines

    return refuse


@pytest.fixture
def problem(problems: Callable[[str], list[str]]) -> Callable[[str], str]:
    """The only line that a study of the bakery is refused with."""

    def refuse(text: str) -> str:
        (line,) = problems(text)
        return line

    return refuse


TOY_STUDY = """\
name: toys
question: Which rate is best?
trainer: toy
preset: quick
seeds: [0, 1]
evaluate: [score]
references: [noise]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast | wild: {rate: 0.3}
"""


@pytest.fixture
def toy_plan(tmp_path: Path) -> Callable[..., Plan]:
    """A plan of the toy study, with `changes` (old text to new) made to its file."""

    def make(**changes: str) -> Plan:
        text = TOY_STUDY
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "toys.yaml"
        file.write_text(text)
        return plan(load_study(file, lookup=lambda name: ToyTrainer()), ToyTrainer(), Place())

    return make


@pytest.fixture
def toy_place(tmp_path: Path) -> Place:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Place(data={"scratch": scratch})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return new_ledger(tmp_path / "ledger")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which it takes a second or more to make."""
    from mlflow.tracking import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    """An embedded MLflow store."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


BUCKET = "bucket"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """`host:port` of an S3 server in a thread of this process, with one bucket."""
    from moto.server import ThreadedMotoServer  # takes a second

    # It writes the traceback of every request that is cut.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    fs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        endpoint_override=f"{host}:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    ).create_dir(BUCKET)
    yield f"{host}:{port}"
    server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """A folder on an S3 server, which is reached through a proxy, or past it."""

    proxy: Proxy
    server: str
    folder: str

    def uri(self, *, past: bool = False) -> str:
        """The folder's address."""
        address = self.server if past else self.proxy.address
        return (
            f"s3://key:secret@{BUCKET}/{self.folder}"
            f"?endpoint_override={address}&scheme=http&region=us-east-1"
        )

    def storage(self, *, past: bool = False) -> Storage:
        return Storage.open(self.uri(past=past))

    def ledger(self) -> Ledger:
        """A ledger that is there."""
        Ledger(self.storage(past=True)).check_writable()
        return Ledger(self.storage())


@pytest.fixture
def s3(s3_server: str, request: pytest.FixtureRequest) -> Iterator[S3]:
    with Proxy(s3_server, seed=crc32(request.node.name.encode())) as proxy:
        yield S3(proxy=proxy, server=s3_server, folder=secrets.token_hex(8))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a storage are short, pyarrow does not wait beside, and leases expire soon."""
    monkeypatch.setattr(address, "TRIES", 1)
    leases = {"BEAT_S": 0.1, "EXPIRY_S": 1.0, "_LOOK_S": 0.05, "_RELEASE_WITHIN_S": 0.5}
    for name, seconds in leases.items():
        monkeypatch.setattr(lease, name, seconds)

    class Time:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            time.sleep(seconds / 20)

    monkeypatch.setattr(patience, "time", Time)
    monkeypatch.setattr(patience, "_TOLD_AFTER_S", 0.1)
