"""Whether a study that was afflicted is, to the last bit, the study that nothing disturbed."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from mlflow import MlflowClient
from mlflow.entities import Run

from ablation.cells import Finished
from ablation.ledger import Ledger
from chaos.world import World

__all__ = ["doubled", "faults_of"]


def faults_of(world: World, undisturbed: Ledger) -> Iterator[str]:
    """What is wrong with a complete study, in words; nothing where all is well."""
    plan, ledger = world.plan, world.ledger
    for stage in plan.stages.values():
        ours, theirs = ledger.stage(stage.digest), undisturbed.stage(stage.digest)
        if not isinstance(ours.outcome(), Finished):
            yield f"{stage.name} of seed {stage.seed} is lost: {ours.outcome()}"
            continue
        if ours.outcome() != theirs.outcome():
            yield f"{stage.name}: metrics {ours.outcome()} for {theirs.outcome()}"
        mine, others = ours.journal(), theirs.journal()
        if [(r.step, r.metrics) for r in mine] != [(r.step, r.metrics) for r in others]:
            yield f"{stage.name}: the journal of {len(mine)} records differs"
        mine_end, their_end = ours.ending(), theirs.ending()
        assert mine_end is not None
        assert their_end is not None
        if mine_end.artifacts != their_end.artifacts:
            yield f"{stage.name}: the artifacts differ"
        ends = [attempt.ended for attempt in ours.attempts()]
        if ends.count("finished") != 1 or ends[-1] != "finished":
            yield f"{stage.name} was trained twice, its attempts ended {ends}"
    yield from _at_once(world)
    yield from _mirrored(world)


def _at_once(world: World) -> Iterator[str]:
    """Trainings that two processes led at a time."""
    led = [step for step in world.steps() if step.rank == 0]
    steps = sorted(led, key=lambda step: step.which)  # stable: in time within each
    for which, mine in groupby(steps, key=lambda step: step.which):
        turns = [pid for pid, _ in groupby(step.pid for step in mine)]
        if len(turns) != len(set(turns)):
            yield f"training {which}: two processes took turns: {turns}"


def doubled(world: World) -> Iterator[str]:
    """Points that MLflow has twice; to be asked before `ablation sync`, which would mend it."""
    for run in _runs(world):
        for key, points in _histories(world, run).items():
            steps = [step for step, _ in points]
            if len(steps) != len({*steps}):
                yield f"{run.info.run_name}: {key} has the steps {steps}"


def _mirrored(world: World) -> Iterator[str]:
    """Where MLflow does not say what the ledger says, point for point."""
    plan, runs = world.plan, _runs(world)
    if len(runs) != len(plan.cells):
        yield f"MLflow has {len(runs)} runs of {len(plan.cells)} cells"
    names = {cell.title: cell for cell in plan.cells}
    for run in runs:
        told = _histories(world, run)
        held: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for stage in names[run.info.run_name]:
            for record in world.ledger.journal(stage.digest):
                for name, value in record.metrics.items():
                    held[f"{stage.name}/{name}"].append((record.step, value))
            outcome = world.ledger.outcome(stage.digest)
            final = outcome.metrics if isinstance(outcome, Finished) else {}
            held |= {
                key: [(0, value)]
                for name, value in final.items()
                if (key := f"{stage.name}/{name}") not in held
            }
        for key in held.keys() | told.keys():
            if held.get(key) != told.get(key):
                yield f"{run.info.run_name}: {key} has {told.get(key)}, not {held.get(key)}"


def _runs(world: World) -> list[Run]:
    client = MlflowClient(world.mlflow)
    experiment = client.get_experiment_by_name(world.plan.study.name)
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if "ablation.cell" in run.data.tags]


def _histories(world: World, run: Run) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient(world.mlflow)
    return {
        key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
