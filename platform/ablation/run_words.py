"""What a run of MLflow says of a cell, in MLflow's words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ablation.cells import Begun, Cell, Failed, Finished, Standing, Stopped
from ablation.settings import flatten

__all__ = ["params", "status", "tags"]

_PARAMS, _PARAM_LENGTH = 100, 6000  # MLflow's limits; config.json has all of it, whole


def params(cell: Cell) -> Mapping[str, str]:
    """The settings of a cell's first stage by dotted path, as far as MLflow takes them."""
    config = cell.stages[0].config
    texts = {
        path: value if isinstance(value, str) else json.dumps(value)
        for path, value in flatten(type(config), asdict(config)).items()
    }
    return {path: text[:_PARAM_LENGTH] for path, text in list(texts.items())[:_PARAMS]}


def tags(cell: Cell, *, parent: str, stages: str) -> Mapping[str, str]:
    """The run's name, its place below the run `parent`, and the cell's folder below `stages`."""
    return {
        "mlflow.runName": cell.title,
        "mlflow.parentRunId": parent,
        "row": cell.label,
        "seed": str(cell.seed),
        "ledger": f"{stages}/{cell.stages[0].digest}",
    }


def status(stands: Sequence[Standing]) -> str:
    """How a run stands whose stages stand so."""
    if all(isinstance(standing, Finished) for standing in stands):
        return "FINISHED"
    if any(isinstance(standing, Failed) for standing in stands):
        return "FAILED"
    if any(isinstance(standing, Stopped) for standing in stands):
        return "KILLED"
    begun = any(isinstance(standing, Begun | Finished) for standing in stands)
    return "RUNNING" if begun else "SCHEDULED"
