"""Whether a study that was afflicted is, to the last bit, the study that nothing disturbed."""

from collections.abc import Iterator
from itertools import groupby

from mlflow import MlflowClient

from ablation.cells import Finished
from ablation.ledger import Ledger
from ablation.plan import Plan
from chaos.world import World

__all__ = ["faults_of"]


def faults_of(world: World, undisturbed: Ledger, tracking: str) -> Iterator[str]:
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
    if world.workers == 1:
        yield from _at_once(world)
    yield from _mirrored(plan, ledger, tracking)


def _at_once(world: World) -> Iterator[str]:
    """Trainings at which two processes were at work at a time."""
    steps = sorted(world.steps(), key=lambda step: step.which)  # stable: in time within each
    for which, mine in groupby(steps, key=lambda step: step.which):
        turns = [pid for pid, _ in groupby(step.pid for step in mine)]
        if len(turns) != len(set(turns)):
            yield f"training {which}: two processes took turns: {turns}"


def _mirrored(plan: Plan, ledger: Ledger, tracking: str) -> Iterator[str]:
    """Where MLflow does not say what the ledger says, point for point."""
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(plan.study.name)
    if experiment is None:
        yield "MLflow has no experiment"
        return
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    cells = [run for run in runs if "ablation.cell" in run.data.tags]
    if len(cells) != len(plan.cells):
        yield f"MLflow has {len(cells)} runs of {len(plan.cells)} cells"
    names = {cell.title: cell for cell in plan.cells}
    for run in cells:
        for stage in names[run.info.run_name].stages:
            records = ledger.journal(stage.digest)
            for name in {name for record in records for name in record.metrics}:
                points = client.get_metric_history(run.info.run_id, f"{stage.name}/{name}")
                told = [(point.step, point.value) for point in points]
                if told != [(r.step, r.metrics[name]) for r in records if name in r.metrics]:
                    yield f"{run.info.run_name}: {stage.name}/{name} has {len(told)} other points"
