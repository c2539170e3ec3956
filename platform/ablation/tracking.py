"""The MLflow mirror of the ledger: the only module that knows MLflow.

One experiment a study, one parent run with its tables, one child run a cell, found by tag. The
mirror only repeats what the ledger holds, with the ledger's own timestamps, so that MLflow drops
what it already has: writing twice changes nothing.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from ablation.cells import Begun, Cell, Failed, Finished, PlannedStage, Standing, Waiting
from ablation.journal import Record
from ablation.ledger import Ledger
from ablation.plan import Plan

__all__ = ["TRACKING_ERRORS", "Mirror", "pages"]

TRACKING_ERRORS = (MlflowException, SQLAlchemyError, OSError, ImportError)
"""What a tracking store raises that is away, full, broken or without its driver."""

_CELL, _STUDY = "ablation.cell", "ablation.study"
_METRICS_PER_BATCH = 1000  # MLflow's limit
_PARAMS, _PARAM_LENGTH = 100, 6000  # MLflow's limits; config.json has all of it, whole
_VIEW = "study"


@dataclass(slots=True)
class Mirror:
    """A study's experiment at a tracking URI. Every method may raise TRACKING_ERRORS.

    `artifacts` is the folder of an embedded store's artifacts, None where a server decides.
    """

    plan: Plan
    ledger: Ledger
    uri: str
    artifacts: Path | None = None
    _client: MlflowClient = field(init=False)
    _experiment: str = field(init=False)
    _runs: dict[str, str] = field(init=False, default_factory=dict)
    _parent: str = field(init=False)

    def open(self) -> None:
        """Find or make the experiment, the parent run, and a run for every cell."""
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the next run repairs
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._client = MlflowClient(self.uri)
        study = self.plan.study
        self._experiment = self._find_experiment(study.name)
        known = {
            run.data.tags.get(_CELL, _STUDY): run.info.run_id
            for run in self._client.search_runs([self._experiment], max_results=50_000)
        }
        self._parent = known.get(_STUDY) or self._begin(
            f"{study.name} (study)", {_STUDY: study.name}
        )
        for cell in self.plan.cells:
            key = _key(cell)
            self._runs[key] = known.get(key) or self._begin(cell.title, {_CELL: key})
            self._describe(self._runs[key], cell)
        for key in known.keys() - self._runs.keys() - {_STUDY}:
            self._client.set_tag(known[key], "row", "(no longer in the study)")
        view = _view(self.plan.study.metrics)
        self._client.set_experiment_tag(self._experiment, f"mlflow.sharedViewState.{_VIEW}", view)

    @property
    def page(self) -> str:
        """Path and fragment of the page that compares the study's rows, behind the server's URL."""
        return _page(self._experiment)

    def log(self, digest: str, records: Iterable[Record]) -> None:
        """Repeat journal records of a stage in the runs of all cells that have it."""
        for cell, stage in self._holders(digest):
            self._log(self._runs[_key(cell)], list(_metrics(stage, records)))

    def sync(self, standings: Mapping[str, Standing]) -> None:
        """Make every run say what the ledger says, whatever it said before."""
        for cell in self.plan.cells:
            run = self._runs[_key(cell)]
            stands = [standings[stage.digest] for stage in cell]
            for stage, standing in zip(cell, stands, strict=True):
                if isinstance(standing, Waiting):
                    continue
                records = list(_metrics(stage, self.ledger.journal(stage.digest)))
                self._log(run, records)
                if isinstance(standing, Finished):
                    told = {metric.key for metric in records}
                    self._log(run, [m for m in self._final(stage, standing) if m.key not in told])
            self._conclude(run, cell, stands)

    def publish(self, texts: Mapping[str, str], *, figure: Figure) -> None:
        """Put texts and figure on the parent run, and `table.md` on the experiment's page too."""
        summary = texts["table.md"]
        for name, text in texts.items():
            self._client.log_text(self._parent, text, name)
        self._client.log_figure(self._parent, figure, "comparison.png")
        self._client.set_tag(self._parent, "mlflow.note.content", summary)
        self._client.set_experiment_tag(self._experiment, "mlflow.note.content", summary)

    def close(self, *, complete: bool) -> None:
        """Say that the study is not being run any more."""
        self._client.set_terminated(self._parent, "FINISHED" if complete else "FAILED")

    def _find_experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None if self.artifacts is None else (self.artifacts / name).absolute().as_uri()
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(name, artifact_location=location, tags=tags))

    def _begin(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def _describe(self, run: str, cell: Cell) -> None:
        """Say what a cell is; where that was said before, labels and evaluations may be new."""
        first = cell.stages[0]
        tags = {
            "mlflow.parentRunId": self._parent,
            "row": cell.label,
            "seed": str(cell.seed),
            "ledger": f"{self.ledger.storage.uri}/stages/{first.digest}",
        }
        settings = _flat(asdict(first.config)).items()
        self._client.update_run(run, name=cell.title)
        self._client.log_batch(
            run,
            params=[Param(path, text[:_PARAM_LENGTH]) for path, text in settings][:_PARAMS],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        config = {stage.name: asdict(stage.config) | {"digest": stage.digest} for stage in cell}
        self._client.log_dict(run, config, "config.json")

    def _holders(self, digest: str) -> list[tuple[Cell, PlannedStage]]:
        return [
            (cell, stage) for cell in self.plan.cells for stage in cell if stage.digest == digest
        ]

    def _final(self, stage: PlannedStage, standing: Finished) -> list[Metric]:
        description = self.ledger.stage(stage.digest).description() or {}
        time_ms = description.get("created", {}).get("time_ms", 0)
        return list(_metrics(stage, [Record(0, time_ms, standing.metrics)]))

    def _log(self, run: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run, metrics[start : start + _METRICS_PER_BATCH])

    def _conclude(self, run: str, cell: Cell, stands: Sequence[Standing]) -> None:
        if all(isinstance(standing, Finished) for standing in stands):
            status = "FINISHED"
        elif any(isinstance(standing, Failed) for standing in stands):
            status = "FAILED"
        else:
            status = (
                "RUNNING" if any(isinstance(s, Begun | Finished) for s in stands) else "SCHEDULED"
            )
        if status in ("FINISHED", "FAILED"):
            attempts = (a for stage in cell for a in self.ledger.stage(stage.digest).attempts())
            ended = max((attempt.ended_ms or 0 for attempt in attempts), default=0)
            self._client.set_terminated(run, status, end_time=ended or None)
        else:
            self._client.update_run(run, status)


def pages(uri: str, studies: Iterable[str]) -> dict[str, str]:
    """Pages, as `Mirror.page`, of the studies that a tracking store has."""
    client = MlflowClient(uri)
    found = {study: client.get_experiment_by_name(study) for study in studies}
    return {study: _page(at.experiment_id) for study, at in found.items() if at is not None}


def _page(experiment: str) -> str:
    return (
        f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"
    )


def _key(cell: Cell) -> str:
    return cell.stages[0].digest


def _metrics(stage: PlannedStage, records: Iterable[Record]) -> Iterable[Metric]:
    for record in records:
        for name, value in record.metrics.items():
            yield Metric(f"{stage.name}/{name}", value, record.time_ms, record.step)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _view(metrics: Iterable[str]) -> str:
    """The state of MLflow's runs page: one group a row of the study, its metrics as columns.

    The keys are those that MLflow 3's own "share view" writes.
    """
    columns = [f"metrics.`{name}`" for name in metrics]
    return json.dumps(
        {
            "searchFilter": "",
            "orderByKey": "attributes.start_time",
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": columns,
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": "row"}],
            },
            "runsExpanded": {},
            "groupsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runsHiddenMode": "FIRST_10_RUNS",
            "viewMaximized": True,
            "runListHidden": False,
            "isAccordionReordered": False,
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "globalLineChartConfig": None,
            "chartsSearchFilter": "",
            "autoRefreshEnabled": True,
        }
    )
