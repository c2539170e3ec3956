"""Where a study runs and where its evidence lies: a profile file, the environment, flags.

Nothing here is science: the same study on another profile has the same cells. A later source
wins: defaults, the file of `--on`, variables `ABLATION_<FIELD>`, flags.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ablation.address import folder_at, public
from ablation.layout import Layout
from ablation.problems import Problem, StudyError
from ablation.protocol import Place
from ablation.settings import Fault, flatten, settle, unknown
from ablation.yamlfile import read

__all__ = ["Profile", "load_profile", "parse_data", "workers_of"]

_LEAST = {
    "workers": 1,
    "cpus_per_worker": 1,
    "gpus_per_worker": 0,
    "concurrency": 1,
    "loaders": 0,
    "checkpoint_every_s": 0.01,
    "max_failures": 0,
    "patience_s": 0,
    "grace_s": 0,
}


class _ProfileError(ValueError):
    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A place to run: a Ray cluster, and storage.

    `address` is the host and port of the cluster's head; `local` is a cluster of its own, `auto`
    the one that RAY_ADDRESS names, or that runs on this machine. `dashboard` is the http address by
    which studies are submitted (None: port 8265 of the head), `image` the container image that all
    nodes must run (None: any, or none), by the name that it was built as.

    `storage` is a folder or a URI, `tracking` an MLflow URI (None: a SQLite file of its own),
    `data` says where data sets and weights lie, `allow_download` whether a trainer may fetch
    weights that are not at hand, `loaders` is the number of loader processes of a worker.
    Checkpoints are `checkpoint_every_s` seconds apart, or where that is a pair, as far as it pays
    between those bounds. `max_failures`, `patience_s` and `priority` are those of Terms. The other
    fields are those of Layout.
    """

    address: str = "local"
    dashboard: str | None = None
    image: str | None = None
    storage: str = "ablation-results"
    tracking: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    allow_download: bool = False
    workers: int | tuple[int, int] = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int | None = None
    concurrency: int | None = None
    loaders: int = 0
    checkpoint_every_s: float | tuple[float, float] = (5.0, 600.0)
    max_failures: int = 1
    patience_s: float = 3600.0
    notice: str | None = None
    grace_s: float = 25.0
    priority: int = 0

    def __post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        for name, least in _LEAST.items():
            value = getattr(self, name)
            ends = value if isinstance(value, tuple) else (value, value)
            if value is not None and ends[0] < least:
                problems.append((name, f"must be at least {least:g}, got {ends[0]:g}."))
            elif value is not None and ends[0] > ends[1]:
                problems.append((name, f"must rise, got {list(ends)}."))
        if not _is_address(self.address):
            sentence = (
                f"must be local, auto or HOST:PORT of a cluster's head, got {self.address!r}."
            )
            problems.append(("address", sentence))
        if self.dashboard is not None and not _is_web(self.dashboard):
            sentence = f"must be http://HOST:PORT of Ray's dashboard, got {public(self.dashboard)}."
            problems.append(("dashboard", sentence))
        if self.tracking is not None and not _is_uri(self.tracking):
            sentence = (
                f"must be an MLflow URI such as http://HOST:PORT or postgresql://HOST/NAME, got "
                f"{public(self.tracking)}. In a password, write / as %2F and [ as %5B."
            )
            problems.append(("tracking", sentence))
        if problems:
            raise _ProfileError(problems)

    @property
    def layout(self) -> Layout:
        """How cells are spread."""
        return Layout(**{part.name: getattr(self, part.name) for part in fields(Layout)})

    @property
    def bounds_s(self) -> tuple[float, float]:
        """The shortest and the longest time between checkpoints, in seconds."""
        every = self.checkpoint_every_s
        return every if isinstance(every, tuple) else (every, every)

    @property
    def place(self) -> Place:
        """What a stage is told."""
        # Absolute, since a worker's working folder is not the driver's.
        data = {name: folder_at(at).absolute() for name, at in self.data.items()}
        return Place(
            data=data,
            threads=self.cpus_per_worker,
            loaders=self.loaders,
            download=self.allow_download,
        )

    def mlflow(self, local: Path | None) -> tuple[str, Path | None]:
        """URI of the MLflow store, and the folder of its artifacts where it is the embedded one.

        The embedded store lies beside a `local` ledger; a remote ledger's (None) in the working
        folder.
        """
        if self.tracking is not None:
            return self.tracking, None
        here = local or Path("ablation-results").absolute()
        return f"sqlite:///{here / 'mlflow.db'}", here / "mlflow"


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    numbered = port.isascii() and port.isdigit() and 0 < int(port) < 2**16
    return text in ("local", "auto") or bool(host and "/" not in host and numbered)


def _is_web(text: str) -> bool:
    return text.startswith(("http://", "https://")) and _is_uri(text)


def _is_uri(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme not in ("http", "https") or bool(parts.hostname and parts.port != 0)
    except ValueError:  # also of a port that is no number
        return False


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
    data = {name: str(here / folder_at(at)) for name, at in profile.data.items()}
    is_folder = "storage" in content and "://" not in profile.storage
    storage = str(here / folder_at(profile.storage)) if is_folder else profile.storage
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
    """A value from text; what is none of the kind stays text, for the type check to refuse."""
    if name == "data":
        return parse_data(text.split(","), source="ABLATION_DATA")
    if kind in (str, str | None):
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return _numbers(text, float if kind in (float, float | tuple[float, float]) else int)


def workers_of(text: str) -> Any:
    """A number of workers, or a pair of bounds, from `2` or `1..4`; other text stays text."""
    return _numbers(text, int)


def _numbers(text: str, number: type[int | float]) -> Any:
    try:
        parts = [number(part) for part in text.split("..")]
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else parts


def _over(profile: Profile, values: Mapping[str, Any], *, where: str) -> Profile:
    flat: dict[str, Any] = {part.name: getattr(profile, part.name) for part in fields(Profile)}
    data = {**profile.data, **values.get("data", {})}
    settled, faults = settle(Profile, {**flat, **values, "data": data})
    if faults:
        raise StudyError(Problem(where, 0, f"{f.path} {f.sentence}") for f in faults)
    result: Profile = settled
    return result
