"""Run what is missing of a study, and leave its tables in the ledger and in MLflow.

Conducts only: the executors run stages, the ledger holds what came of it, the mirror repeats it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ablation.cells import Cell, Failed, Finished, Standing
from ablation.display import displaying
from ablation.events import Event, Observe
from ablation.ledger import Ledger
from ablation.plan import Plan
from ablation.profile import Profile
from ablation.protocol import Trainer
from ablation.render import to_csv, to_markdown
from ablation.table import tabulate

__all__ = ["run_study"]

_MIRRORED = "mirrored.txt"


def run_study(
    plan: Plan,
    *,
    trainer: Trainer,
    ledger: Ledger,
    profile: Profile,
    inline: bool,
    console: Console,
) -> tuple[dict[str, Standing], dict[str, str]]:
    """How every stage stands afterwards, by digest, and why cells were lost, by title.

    Stages that failed before are tried again; stages that finished never are.
    """
    for digest in plan.stages:
        ledger.clear_failure(digest)
    standings = ledger.standings(plan.stages)
    todo = [
        cell
        for cell in plan.cells
        if not all(isinstance(standings[stage.digest], Finished) for stage in cell)
    ]
    if not todo and ledger.read_study(plan.study.name, _MIRRORED) == _state(plan, profile):
        console.print(f"All {len(plan.stages)} stages are finished: nothing to train.")
        _say_where(ledger, profile, console)
        return standings, {}
    return _run(plan, todo, trainer, ledger=ledger, profile=profile, inline=inline, console=console)


def _run(
    plan: Plan,
    todo: list[Cell],
    trainer: Trainer,
    *,
    ledger: Ledger,
    profile: Profile,
    inline: bool,
    console: Console,
) -> tuple[dict[str, Standing], dict[str, str]]:
    from ablation.follow import Follower
    from ablation.tracking import Mirror

    study = Path(plan.study.document.file).read_text()
    ledger.write_study(plan.study.name, {"study.yaml": study})
    done = len(plan.stages) - len({stage.digest for cell in todo for stage in cell})
    uri, artifacts = profile.mlflow
    follower = Follower(
        Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=artifacts), console.print
    )
    lost: dict[str, str] = {}
    if todo:
        with displaying(plan, done, console) as display:

            def observe(event: Event) -> None:
                display(event)
                follower(event)

            lost = _execute(todo, trainer, ledger, profile, inline=inline, observe=observe)
    else:
        console.print(f"All {len(plan.stages)} stages are finished: nothing to train.")
    standings = ledger.standings(plan.stages)
    table = tabulate(plan, standings)
    texts = {"table.md": to_markdown(table), "table.csv": to_csv(table)}
    if follower.finish(standings, table, study):
        texts[_MIRRORED] = _state(plan, profile)
    ledger.write_study(plan.study.name, texts)
    _say_where(ledger, profile, console)
    ended = {cell.title for cell in plan.cells if _ended(cell, standings)}
    return standings, {title: why for title, why in lost.items() if title not in ended}


def _execute(
    todo: list[Cell],
    trainer: Trainer,
    ledger: Ledger,
    profile: Profile,
    *,
    inline: bool,
    observe: Observe,
) -> dict[str, str]:
    if inline:
        from ablation.execute import never
        from ablation.executors.inline import run_inline

        run_inline(
            todo,
            trainer=trainer,
            ledger=ledger,
            place=profile.place,
            observe=observe,
            should_stop=never,
            checkpoint_every_s=profile.checkpoint_every_s,
        )
        return {}
    from ablation.executors.cluster import run_cluster

    return run_cluster(
        todo,
        trainer=trainer,
        ledger=ledger,
        place=profile.place,
        layout=profile.layout,
        observe=observe,
    )


def _ended(cell: Cell, standings: Mapping[str, Standing]) -> bool:
    stands = [standings[stage.digest] for stage in cell]
    failed = any(isinstance(standing, Failed) for standing in stands)
    return failed or all(isinstance(standing, Finished) for standing in stands)


def _state(plan: Plan, profile: Profile) -> str:
    """What a whole mirror mirrors: changes when a stage, a label or the server does."""
    cells = [(cell.row, cell.seed, [stage.digest for stage in cell]) for cell in plan.cells]
    return hashlib.sha256(repr((profile.mlflow[0], cells)).encode()).hexdigest()


def _say_where(ledger: Ledger, profile: Profile, console: Console) -> None:
    console.print(f"Ledger: {ledger.storage.uri}", soft_wrap=True, highlight=False)
    console.print(f"MLflow: {profile.mlflow[0]}", soft_wrap=True, highlight=False)
