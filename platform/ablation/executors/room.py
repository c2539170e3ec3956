"""Room on the cluster: what lost groups held is given back, and a cell that may grow grows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

from ablation.cells import Cell
from ablation.layout import Layout
from ablation.protocol import Trainer

__all__ = ["Growth", "fitting", "free_workers", "nodes", "reclaim", "slots", "workers_on"]

_LOOK_EVERY_S = 30.0


def fitting(layout: Layout, trainer: Trainer, cells: Sequence[Cell], room: int) -> int:
    """The most workers, of so many for which there is room, that the cells' settings allow.

    It is the layout's least where there is no room, or where nothing else is allowed.
    """
    configs = [stage.config for cell in cells for stage in cell]
    for workers in range(min(layout.most, room), layout.least, -1):
        if not any(trainer.check(config, workers) for config in configs):
            return workers
    return layout.least


def free_workers(layout: Layout) -> int:
    """For how many workers the cluster's nodes have room now."""
    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    leaving = state.get_draining_nodes()
    return sum(workers_on(free[node], layout) for node in free if node not in leaving)


def slots(layout: Layout) -> int:
    """How many cells the cluster holds at a time, counted node by node."""
    return sum(workers_on(node, layout) for node in nodes()) // layout.least


def nodes() -> Sequence[Mapping[str, float]]:
    """What each living node has that is not about to leave."""
    known, leaving = ray.nodes(), state.get_draining_nodes()  # type: ignore[no-untyped-call]
    return [n["Resources"] for n in known if n["Alive"] and n["NodeID"] not in leaving]


def workers_on(resources: Mapping[str, float], layout: Layout) -> int:
    """How many workers a node with such resources holds."""
    fits = int(resources.get("CPU", 0) // layout.cpus_per_worker)
    if layout.gpus_per_worker:
        fits = min(fits, int(resources.get("GPU", 0) // layout.gpus_per_worker))
    return fits


def reclaim() -> None:
    """Give back what groups of this driver held whose controller was lost.

    Ray keeps a placement group as long as its creator's job, and Train's own cleaner needs the
    dashboard and ends at the first question that is not answered.
    """
    job = ray.get_runtime_context().get_job_id()
    for content in state._connect_and_get_accessor().get_placement_group_table():
        held = PlacementGroupTableData.FromString(content)
        if (
            held.creator_actor_dead  # said of those too that the driver itself created
            and not ray.ActorID(held.creator_actor_id).is_nil()
            and held.creator_job_id.hex() == job
            and held.state != PlacementGroupTableData.REMOVED
        ):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(held.placement_group_id)))


@dataclass(slots=True)
class Growth:
    """Whether a group of so many workers could be larger; it looks every half minute."""

    layout: Layout
    trainer: Trainer
    cells: Sequence[Cell]
    workers: int
    looked: float = 0.0
    found: bool = False

    def __call__(self) -> bool:
        """Whether there is room for a larger group."""
        now = time.monotonic()
        if self.workers < self.layout.most and now - self.looked > _LOOK_EVERY_S:
            room = self.workers + free_workers(self.layout)
            larger = fitting(self.layout, self.trainer, self.cells, room)
            self.looked, self.found = now, self.looked > 0 and larger > self.workers
        return self.found
