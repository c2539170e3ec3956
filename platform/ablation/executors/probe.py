"""Asks every node of a Ray cluster something, at once and without waiting for room."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Node", "ask_nodes"]

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Generic[_Answer]):
    """A living node: its address, what it has, and its answer, or why it gave none."""

    address: str
    resources: Mapping[str, float]
    answer: _Answer | str


def ask_nodes(
    ask: Callable[[_Question], _Answer], question: _Question, *, within_s: float
) -> list[Node[_Answer]]:
    """All nodes of the cluster that this process is connected to; each must have the package."""
    known = ray.nodes()  # type: ignore[no-untyped-call]
    task, nodes = ray.remote(ask), [node for node in known if node["Alive"]]
    asked = [task.options(**_on(node["NodeID"])).remote(question) for node in nodes]
    return [
        Node(
            address=node["NodeManagerAddress"],
            resources=node["Resources"],
            answer=_answer(reference, within_s),
        )
        for node, reference in zip(nodes, asked, strict=True)
    ]


def _on(node: str) -> dict[str, object]:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}


def _answer(reference: Any, within_s: float) -> Any:
    """The answer, or why there is none."""
    try:
        return ray.get(reference, timeout=within_s)
    except GetTimeoutError:
        return f"it gave no answer for {within_s:g} s"
    except RayError as error:
        return str(error).strip().rpartition("\n")[2]
