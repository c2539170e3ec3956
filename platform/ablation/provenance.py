"""Who computes, where, when and with what: the one place that reads environment, clock and git.

None of it belongs to a stage's identity; all of it is recorded with every attempt.
"""

import getpass
import inspect
import os
import platform
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ablation.process import this_process
from ablation.protocol import Trainer

__all__ = ["built_as", "git_state", "now_ms", "provenance", "user"]

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pyarrow", "ray", "mlflow")


def now_ms() -> int:
    """Milliseconds since 1970 (UTC)."""
    return time.time_ns() // 1_000_000


def provenance(trainer: Trainer) -> dict[str, Any]:
    """Time, host, user, image, Python, package versions, the commit of the trainer's source.

    `host` is for people; `machine` differs after each of its starts.
    """
    return {
        "time_ms": now_ms(),
        "host": socket.gethostname(),
        "machine": this_process().host,
        "user": user(),
        "image": built_as(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "trainer": {
            "name": trainer.name,
            "result_version": trainer.result_version,
            "git": _trainer_git(trainer),
        },
    }


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit of the checkout that tracks a file, and whether the file's folder differs from it.

    None where the file is not tracked by git, or git is not there to ask.
    """
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit, changes = _git(source, "rev-parse", "HEAD"), _git(source, "status", "--porcelain", ".")
    return {"commit": commit, "dirty": bool(changes)}


def _trainer_git(trainer: Trainer) -> dict[str, Any] | None:
    try:
        return git_state(Path(inspect.getfile(type(trainer))).resolve())
    except (TypeError, OSError):  # a class typed in by hand has no file
        return None


def _git(source: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(source.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def user() -> str:
    """Who computes, by the name that the system has for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return str(os.getuid())


def built_as() -> str:
    """The name that the container image was built as; empty where it, or no image, says none."""
    return os.environ.get("ABLATION_BUILT_AS", "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
