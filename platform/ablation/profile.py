"""Where a study runs and where its evidence lies: a profile file, the environment, flags.

Nothing here is science: the same study on another profile has the same cells. A later source
wins: defaults, the file of `--on`, variables `ABLATION_<FIELD>`, flags.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ablation.layout import Layout
from ablation.problems import Problem, StudyError
from ablation.protocol import Place
from ablation.settings import Fault, flatten, settle, unknown
from ablation.storage import Storage
from ablation.yamlfile import read

__all__ = ["Profile", "load_profile", "parse_data"]

_NUMBERS = ("workers", "cpus_per_worker", "gpus_per_worker", "concurrency", "loaders")


class _ProfileError(ValueError):
    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A place to run: the Ray cluster at `address` (`local`: one of its own), and storage.

    `storage` is a folder or a URI, `tracking` an MLflow URI (None: a SQLite file of its own),
    `data` says where data sets lie. The other fields are those of Layout, and `loaders`, the
    loader processes of a worker.
    """

    address: str = "local"
    storage: str = "ablation-results"
    tracking: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int | None = None
    concurrency: int | None = None
    loaders: int = 0
    checkpoint_every_s: float = 30.0

    def __post_init__(self) -> None:
        least = {"loaders": 0, "gpus_per_worker": 0}
        values = {name: getattr(self, name) for name in _NUMBERS}
        problems = [
            (name, f"must be at least {least.get(name, 1)}, got {value}.")
            for name, value in values.items()
            if value is not None and value < least.get(name, 1)
        ]
        if self.checkpoint_every_s <= 0:
            sentence = f"must be above 0 seconds, got {self.checkpoint_every_s:g}."
            problems.append(("checkpoint_every_s", sentence))
        if problems:
            raise _ProfileError(problems)

    @property
    def layout(self) -> Layout:
        """How cells are spread."""
        return Layout(**{part.name: getattr(self, part.name) for part in fields(Layout)})

    @property
    def place(self) -> Place:
        """What a stage is told."""
        # Absolute, since a worker's working folder is not the driver's.
        data = {name: Path(folder).expanduser().absolute() for name, folder in self.data.items()}
        return Place(data=data, threads=self.cpus_per_worker, loaders=self.loaders)

    @property
    def mlflow(self) -> tuple[str, Path | None]:
        """URI of the MLflow store, and the folder of its artifacts where it is the embedded one.

        The embedded store lies beside a local ledger; a remote ledger's in the working folder.
        """
        if self.tracking is not None:
            return self.tracking, None
        here = Storage.open(self.storage).local or Path("ablation-results").absolute()
        return f"sqlite:///{here / 'mlflow.db'}", here / "mlflow"


def load_profile(
    path: Path | None, *, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Profile:
    """The profile of a file (None: no file), under the environment's and the flags' values.

    Relative folders in a file are relative to that file. A flag that is None was not given; the
    data sets of the sources add up.

    Raises StudyError with every problem at its place.
    """
    profile = Profile() if path is None else _from_file(path)
    profile = _over(profile, _from_environment(environment), where="the environment")
    return _over(profile, {k: v for k, v in flags.items() if v is not None}, where="the flags")


def _from_file(path: Path) -> Profile:
    document = read(path)
    content = {} if document.content is None else document.content
    if not isinstance(content, dict):
        raise StudyError([document.problem("a profile must be settings by name.")])
    flat = flatten(Profile, content)
    faults = unknown(Profile, flat)
    profile, found = settle(Profile, {k: v for k, v in flat.items() if k not in _paths(faults)})
    profile = profile or Profile()
    problems = [
        document.problem(f"{fault.path} {fault.sentence}", *fault.path.split("."))
        for fault in [*faults, *found]
    ]
    if problems or document.problems:
        raise StudyError([*document.problems, *problems])
    here = path.parent
    data = {name: str(here / Path(at).expanduser()) for name, at in profile.data.items()}
    is_folder = "storage" in content and "://" not in profile.storage
    storage = str(here / Path(profile.storage).expanduser()) if is_folder else profile.storage
    return replace(profile, data=data, storage=storage)


def _paths(faults: list[Fault]) -> set[str]:
    return {fault.path for fault in faults}


def parse_data(items: Iterable[str], *, source: str) -> dict[str, str]:
    """Folders by name from texts `NAME=FOLDER`; an empty text says nothing.

    Raises StudyError for a text of another form.
    """
    pairs = {item: item.partition("=") for item in items if item.strip()}
    if wrong := [
        item for item, (name, _, at) in pairs.items() if not name.strip() or not at.strip()
    ]:
        raise StudyError([Problem(source, 0, f"must be NAME=FOLDER, got {wrong[0]!r}.")])
    return {name.strip(): at.strip() for name, _, at in pairs.values()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {f"ABLATION_{part.name.upper()}": part for part in fields(Profile)}
    given = {part: environment[name] for name, part in names.items() if name in environment}
    return {part.name: _typed(part.type, part.name, text) for part, text in given.items()}


def _typed(kind: Any, name: str, text: str) -> Any:
    """A value from text; what is no number stays text, for the type check to refuse."""
    if name == "data":
        return parse_data(text.split(","), source="ABLATION_DATA")
    if kind in (str, str | None):
        return text
    try:
        return float(text) if kind is float else int(text)
    except ValueError:
        return text


def _over(profile: Profile, values: Mapping[str, Any], *, where: str) -> Profile:
    flat: dict[str, Any] = {part.name: getattr(profile, part.name) for part in fields(Profile)}
    data = {**profile.data, **values.get("data", {})}
    settled, faults = settle(Profile, {**flat, **values, "data": data})
    if faults:
        raise StudyError(Problem(where, 0, f"{f.path} {f.sentence}") for f in faults)
    result: Profile = settled
    return result
