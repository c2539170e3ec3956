"""What processes say of their hold on a stage: an object each, `<epoch>-<name>.json`."""

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from ablation.manifest import read_sound
from ablation.process import Process
from ablation.storage import Storage
from ablation.typed import Count, Moment, loads, typed

__all__ = ["Claim", "claims_at", "clear", "names_at", "put", "there"]

_NAME = re.compile(r"(\d{6}-\w+)\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a process says of its hold on a stage, and how far it has come."""

    name: str
    """`<epoch>-<random>`."""
    process: Process
    run: str
    """The call of `ablation run` that it works for."""
    beat: Count = 0
    attempt: Count = 0
    step: Count = 0
    notice: str = ""
    """What it was told of its coming end, empty before."""
    now_ms: Moment = 0
    """Its own clock: for people, never compared."""
    over: bool = False
    """Whether it was given up."""

    @property
    def epoch(self) -> int:
        """Claims of a stage in the order of their takeovers."""
        return int(self.name.partition("-")[0])

    def to_bytes(self) -> bytes:
        """The claim as JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def parse(cls, content: bytes) -> "Claim":
        """The inverse of `to_bytes`; what it does not know is left out.

        Raises ValueError for anything else.
        """
        return typed(cls, loads(content))


def claims_at(storage: Storage, path: str) -> dict[str, Claim]:
    """The claims at `path` by name; of one that cannot be read the name alone is known."""
    found: dict[str, Claim] = {}
    for name in names_at(storage, path):
        try:
            claim = read_sound(storage, f"{path}/{name}.json", Claim.parse)
        except ValueError:
            claim = Claim(name=name, process=Process(host="", pid=0, born=""), run="")
        if claim is not None:  # else released since it was listed
            found[name] = replace(claim, name=name)
    return found


def names_at(storage: Storage, path: str) -> list[str]:
    """Names of the claims at `path`, those of the lowest epoch first."""
    return [match[1] for match in map(_NAME.fullmatch, storage.names(path)) if match]


def there(storage: Storage, path: str, claim: Claim) -> bool:
    """Whether a claim was not removed."""
    return storage.read(f"{path}/{claim.name}.json") is not None


def put(storage: Storage, path: str, claim: Claim) -> None:
    """Write a claim, over what it said before."""
    storage.write(f"{path}/{claim.name}.json", claim.to_bytes(), durable=False)


def clear(storage: Storage, path: str, names: Collection[str]) -> None:
    """Remove claims, and what is left of writing them."""
    listed = (file for file in storage.names(path) if file.partition(".")[0] in names)
    for file in {*listed, *(f"{name}.json" for name in names)}:  # a listing may lag
        storage.remove(f"{path}/{file}")
