"""Digests of a run's state, so that two runs can be compared step by step without keeping both."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["digest"]

_HEX_DIGITS = 16


def digest(state: object) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the tensors and plain values of `state`.

    Mappings (in the order of their keys' names), lists and tuples are walked; a tensor counts by
    its dtype, shape and bytes, whatever device holds it. Equal digests mean equal bits.
    """
    sha = hashlib.sha256()
    for path, leaf in _leaves(state, ""):
        if isinstance(leaf, Tensor):
            sha.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
            # Flat, because a tensor without dimensions cannot be viewed as bytes.
            flat = leaf.detach().cpu().contiguous().flatten()
            sha.update(flat.view(torch.uint8).numpy().data)
        else:
            sha.update(f"{path} {leaf!r}\n".encode())
    return sha.hexdigest()[:_HEX_DIGITS]


def _leaves(state: object, path: str) -> Iterator[tuple[str, object]]:
    match state:
        case Mapping():
            items = sorted(state.items(), key=lambda item: str(item[0]))
        case list() | tuple():
            items = list(enumerate(state))
        case _:
            yield path, state
            return
    for name, value in items:
        yield from _leaves(value, f"{path}/{name}")
