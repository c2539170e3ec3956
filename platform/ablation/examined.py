"""What one machine answers when it is looked at: versions, data, storage, devices, memory.

It is asked of whoever runs the command and of every node of a cluster; answers are plain values.
"""

import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ablation.notice import silence
from ablation.provenance import built_as
from ablation.storage import Storage, StorageError

__all__ = ["Examination", "Questions", "examine", "versions"]

_PACKAGES = ("hpm-ablation", "ray", "mlflow", "torch", "torchvision", "timm", "numpy", "pyarrow")
_SHARED_MEMORY = Path("/dev/shm")
_DEVICES_WITHIN_S = 120.0  # a first import of torch from a network disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a machine is asked about.

    `data` are the places of data sets and weights by name, `mark` a file in `storage` (None: it
    cannot be asked about), `notice` the source of notices; the `trainer` is asked for its devices.
    """

    data: Mapping[str, Path] = field(default_factory=dict)
    storage: Storage | None = None
    mark: str = ""
    notice: str | None = None
    trainer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What a machine answered."""

    versions: Mapping[str, str]
    """Of Python and of the packages that results and records depend on."""
    data: Mapping[str, tuple[str, ...] | None]
    """The names at the top of each data set (a file has none); None where nothing is."""
    storage: str
    """Why the mark could not be read, or a file written beside it; empty where both went well."""
    notice: str
    """Why the source of notices does not answer; empty where it does."""
    devices: int | str
    """GPUs that the trainer can use, or why it cannot say."""
    shared_memory: int | None
    """Free bytes for loaders; None where the system has no such folder."""
    image: str = ""
    """What the container image was built as; empty where none says so."""


def examine(questions: Questions) -> Examination:
    """Look at this machine."""
    return Examination(
        versions=versions(),
        data={name: _top(at) for name, at in questions.data.items()},
        storage=_try(questions.storage, questions.mark) if questions.storage else "",
        notice=silence(questions.notice) if questions.notice else "",
        devices=_devices(questions.trainer),
        shared_memory=shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None,
        image=built_as(),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _top(place: Path) -> tuple[str, ...] | None:
    try:
        return tuple(sorted(each.name for each in place.iterdir()))
    except NotADirectoryError:
        return ()
    except OSError:
        return None


def _try(storage: Storage, mark: str) -> str:
    try:
        if storage.read(mark) is None:
            return "it is another one there: what was written here is not in it"
        storage.check_writable(keep={})
    except StorageError as error:
        return str(error)
    return ""


def _devices(trainer: str) -> int | str:
    """Asked in a process of its own: Ray hides GPUs from one that did not ask for them."""
    ask = f"from ablation.trainers import load_trainer; print(load_trainer({trainer!r}).devices())"
    command = ["env", "-u", "CUDA_VISIBLE_DEVICES", sys.executable, "-P", "-c", ask]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DEVICES_WITHIN_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return int(done.stdout)
