"""The part of a lock that an image needs: `lock.py LOCK NEEDED VARIANT [--rest]`.

NEEDED lists the image's packages, as uv resolves them under LOCK. Printed are their lines in LOCK,
hashes included, but triton's; of the variant `cpu` also without torch, torchvision and what those
need of CUDA. With `--rest`, torch and torchvision of that variant are printed alone, by version.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_VARIANTS = ("cuda", "cpu")
_FROM_ELSEWHERE = ("torch", "torchvision")
_OF_CUDA = re.compile(r"(nvidia|cuda)-")
_IDLE = "triton"
"""A gigabyte, with which torch does nothing where there is no compiler of C, as in the image."""


def locked(text: str) -> dict[str, list[str]]:
    """Lines of a lock by package: versions with their markers, and hashes."""
    lines: dict[str, list[str]] = defaultdict(list)
    name = ""
    for line in text.splitlines():
        if found := re.match(r"[a-z0-9][a-z0-9._-]*", line):
            name = found[0]
        if name and line.strip() and not line.startswith("#"):
            lines[name].append(line)
    return dict(lines)


def part(lock: str, needed: str, variant: str, *, rest: bool = False) -> str:
    """What to install of a lock.

    Raises ValueError where the lock lacks a package, or there is no such variant.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"VARIANT must be cuda or cpu, got {variant!r}.")
    lines, names = locked(lock), sorted({*locked(needed)} - {_IDLE})
    if missing := [name for name in names if name not in lines]:
        raise ValueError(f"The lock must have {', '.join(missing)}, and does not. Run `make lock`.")
    if variant == "cuda":
        return "" if rest else _joined(lines[name] for name in names)
    if rest:
        return _joined(
            [line.partition("\\")[0].strip() for line in lines[name] if "==" in line]
            for name in names
            if name in _FROM_ELSEWHERE
        )
    ours = [name for name in names if name not in _FROM_ELSEWHERE and not _OF_CUDA.match(name)]
    return _joined(lines[name] for name in ours)


def _joined(blocks: Iterable[list[str]]) -> str:
    return "".join(f"{line}\n" for block in blocks for line in block)


if __name__ == "__main__":
    _lock, _needed, _variant, *_flags = sys.argv[1:]
    try:
        _text = part(
            Path(_lock).read_text(), Path(_needed).read_text(), _variant, rest="--rest" in _flags
        )
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(_text)
