"""What a run left of a stage, and in what two runs of it differ first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablation.journal import Record
from ablation.manifest import Manifest
from ablation.witness import Trace

__all__ = ["Evidence", "difference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Traces of every step and every try at it, by step; and how the stage ended."""

    traces: Sequence[Trace]
    journal: Sequence[Record]
    metrics: Mapping[str, float]
    artifacts: Manifest

    @property
    def steps(self) -> list[int]:
        """The steps that were done."""
        return list(dict.fromkeys(trace.step for trace in self.traces))

    @property
    def repeated(self) -> int:
        """How many steps were done again."""
        return sum(trace.rank == 0 for trace in self.traces) - len(self.steps)


def difference(one: Evidence, other: Evidence) -> str:
    """The first difference between two runs in words, empty where every bit is the same."""
    return next(_differences(one, other), "")


def _differences(one: Evidence, other: Evidence) -> Iterator[str]:
    yield from _steps(one, other)
    yield from _records(one, other)
    if names := _unequal(_exact(one.metrics), _exact(other.metrics)):
        yield f"the final metrics differ in {names}."
    if names := _unequal(one.artifacts, other.artifacts):
        yield f"the artifacts differ in {names}."


def _steps(one: Evidence, other: Evidence) -> Iterator[str]:
    alone = {*one.steps} ^ {*other.steps}
    first: dict[tuple[int, int], Trace] = {}
    for trace in sorted([*one.traces, *other.traces], key=lambda trace: trace.step):
        if trace.step in alone:
            yield f"step {trace.step} was done in one of the runs only."
        # A worker that was killed may not have got to say what another did.
        known = first.setdefault((trace.step, trace.rank), trace)
        if names := _unequal(known.digests, trace.digests):
            worker = f" of worker {trace.rank}" if trace.rank else ""
            yield f"step {trace.step}{worker} differs in {names}."


def _records(one: Evidence, other: Evidence) -> Iterator[str]:
    ours, theirs = ({r.step: _exact(r.metrics) for r in run.journal} for run in (one, other))
    for step in sorted({**ours, **theirs}):
        if ours.get(step) != theirs.get(step):
            yield f"the journal differs at step {step}."


def _exact(metrics: Mapping[str, float]) -> dict[str, str]:
    """Floats so that nan equals nan and 0.0 is not -0.0."""
    return {name: repr(value) for name, value in metrics.items()}


def _unequal(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    return ", ".join(name for name in {**one, **other} if one.get(name) != other.get(name))
