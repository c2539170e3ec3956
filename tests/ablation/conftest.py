"""A trainer that bakes, whose settings are nested and have rules; plans of the toy trainer."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ablation.ledger import Ledger
from ablation.plan import Plan, plan
from ablation.problems import StudyError
from ablation.protocol import Direction, Kind, Place
from ablation.study import Study, load_study
from ablation.testing import ToyTrainer
from ablation.trainers import TrainerError


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

    def fingerprint(self, config: Any, data: Mapping[str, Path], /) -> str | None:
        return None

    def check(self, config: Any, workers: int, /) -> str | None:
        return None


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
        return plan(load_study(file, lookup=lambda name: ToyTrainer()), ToyTrainer(), {})

    return make


@pytest.fixture
def toy_place(tmp_path: Path) -> Place:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Place(data={"scratch": scratch})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger")
