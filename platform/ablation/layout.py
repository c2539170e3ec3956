"""How a cell is spread over a cluster: never part of an identity."""

from dataclasses import dataclass

__all__ = ["Layout", "LostPlaceError", "PlaceError"]


class PlaceError(Exception):
    """The place is not there or cannot hold a cell; the text is for people."""


class LostPlaceError(Exception):
    """The place was there, and is not any more; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Workers of a cell and what each gets; `address` of the Ray cluster (`local`: its own).

    A cell has `workers` workers, or where that is a pair, so many at least and at most: it shrinks
    when nodes are lost and grows when there is room. A worker's compute threads are its CPUs: a
    reduction depends on their number, so it is set. `gpus_per_worker` None is one where the
    cluster has any, else none; `concurrency` caps the cells that run at a time, None is as many as
    the cluster holds.

    `notice` is a file, or an http(s) address, that tells a worker of its machine's coming end. A
    worker that gets SIGTERM works on for `grace_s` seconds, and saves in that time.
    """

    address: str = "local"
    workers: int | tuple[int, int] = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int | None = None
    concurrency: int | None = None
    notice: str | None = None
    grace_s: float = 25.0

    @property
    def least(self) -> int:
        """The fewest workers of a cell."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The most workers of a cell."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]
