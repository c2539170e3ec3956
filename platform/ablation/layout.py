"""How a cell is spread over a cluster: never part of an identity."""

from dataclasses import dataclass

__all__ = ["Layout", "PlaceError"]


class PlaceError(Exception):
    """The place is not there or cannot hold a cell; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Workers of a cell and what each gets; `address` of the Ray cluster (`local`: its own).

    A worker's compute threads are its CPUs: a reduction depends on their number, so it is set.
    `gpus_per_worker` None is one where the cluster has any, else none; `concurrency` caps the
    cells that run at a time, None is as many as the cluster holds. A checkpoint is committed
    every `checkpoint_every_s` seconds.
    """

    address: str = "local"
    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int | None = None
    concurrency: int | None = None
    checkpoint_every_s: float = 30.0
