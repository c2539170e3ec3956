"""The MLflow mirror of the ledger.

One experiment a study, one parent run with its tables, one child run a cell, found by tag. The
mirror only repeats what the ledger holds, with the ledger's own timestamps, so that MLflow drops
what it already has: writing twice changes nothing. What a run has of figures, a tag of it says. Of
several runs with one tag, which drivers make that begin at once, the oldest is the one, and whoever
sees the others deletes them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ablation.cells import Cell, Finished, PlannedStage, Standing, Waiting
from ablation.curves import Point, curves, journal, points
from ablation.journal import Record
from ablation.ledger import Ledger
from ablation.mlflow_server import connect, find_experiment
from ablation.pictures import figures
from ablation.plan import Plan
from ablation.run_words import params, status, tags
from ablation.runs_page import VIEW_TAG, page, view

__all__ = ["Mirror", "pages"]

_CELL, _STUDY, _FIGURES = "ablation.cell", "ablation.study", "ablation.figures"
_GONE = "(no longer in the study)"
_TRIES = 3
_IN_THE_WAY = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_METRICS_PER_BATCH = 1000  # MLflow's limit


@dataclass(slots=True)
class Mirror:
    """A study's experiment at a tracking URI.

    `artifacts` is the folder of an embedded store's artifacts, None where a server decides. Every
    method may raise `mlflow_server.TRACKING_ERRORS` and what the drivers of artifact stores raise.
    """

    plan: Plan
    ledger: Ledger
    uri: str
    artifacts: Path | None = None
    _client: MlflowClient = field(init=False)
    _experiment: str = field(init=False)
    _runs: dict[str, Run] = field(init=False, default_factory=dict)
    """The run of every cell, by the digest of its first stage; the study's own by its tag."""
    _states: dict[str, str] = field(init=False, default_factory=dict)
    _described: set[tuple[str, str]] = field(init=False, default_factory=set)
    _heard: set[str] = field(init=False, default_factory=set)

    def open(self) -> None:
        """Find or make the experiment, the parent run, and a run for every cell."""
        name, artifacts = self.plan.study.name, self.artifacts
        self._client = connect(self.uri)
        self._experiment = find_experiment(self._client, name, artifacts and artifacts / name)
        self._settled(self._settle)
        tag = partial(self._client.set_experiment_tag, self._experiment, VIEW_TAG)
        self._settled(partial(tag, view(self.plan.study.metrics)))

    @property
    def page(self) -> str:
        """Path and fragment of the page that compares the study's rows, behind the server's URL."""
        return page(self._experiment)

    def log(self, digest: str, records: Iterable[Record]) -> None:
        """Repeat journal records of a stage in the runs of all cells that have it."""
        self._settled(partial(self._hear, digest, list(records)))

    def sync(self, standings: Mapping[str, Standing] | None = None) -> None:
        """Make every run say what the ledger says, whatever it said before.

        `standings` are the ledger's of now where they are not given.
        """
        if standings is None:
            standings = self.ledger.standings(self.plan.stages)
        self._settled(self._settle)
        stands = [(cell, [standings[stage.digest] for stage in cell]) for cell in self.plan.cells]
        for act in (self._sync, self._show):  # all numbers are told before any figure
            for cell, its in stands:
                self._settled(partial(act, cell, its))

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

    @property
    def _parent(self) -> str:
        return str(self._runs[_STUDY].info.run_id)

    def _run(self, cell: Cell) -> str:
        return str(self._runs[_key(cell)].info.run_id)

    def _settled(self, act: Callable[[], None]) -> None:
        """Act, and again where another driver, with an older run or the same tag, came first."""
        for number in range(_TRIES):
            try:
                if number:
                    self._settle()
                act()
            except MlflowException as error:
                if error.error_code not in _IN_THE_WAY or number + 1 == _TRIES:
                    raise
            else:
                return

    def _settle(self) -> None:
        """Find or begin the study's run and every cell's: one each, however many drivers do so."""
        found, cells = self._find_runs(), {_key(cell): cell for cell in self.plan.cells}
        if missing := [key for key in (_STUDY, *cells) if key not in found]:
            made = {key: [self._begin(key, cells.get(key))] for key in missing}
            found = made | self._find_runs()
        self._runs = {key: runs[0] for key, runs in found.items()}
        self._states = {run.info.run_id: run.info.status for run in self._runs.values()}
        self._heard.clear()
        for run in (run for runs in found.values() for run in runs[1:]):
            self._client.delete_run(run.info.run_id)
        for key, run in self._runs.items():
            if key in cells:
                self._describe(run, cells[key])
            elif key != _STUDY and run.data.tags.get("row") != _GONE:
                self._client.set_tag(run.info.run_id, "row", _GONE)

    def _find_runs(self) -> dict[str, list[Run]]:
        """Runs by the cell they are for, or the study's tag; the oldest first."""
        found: dict[str, list[Run]] = {}
        for run in self._client.search_runs([self._experiment], max_results=50_000):
            if key := run.data.tags.get(_CELL) or (_STUDY in run.data.tags and _STUDY):
                found.setdefault(key, []).append(run)
        return {
            key: sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
            for key, runs in found.items()
        }

    def _begin(self, key: str, cell: Cell | None) -> Run:
        study = self.plan.study.name
        name = f"{study} (study)" if cell is None else cell.title
        mark = {_STUDY: study} if cell is None else {_CELL: key}
        return self._client.create_run(self._experiment, run_name=name, tags=mark)

    def _describe(self, run: Run, cell: Cell) -> None:
        """Say what a cell is; where that was said before, labels and evaluations may be new."""
        if (run.info.run_id, self._parent) in self._described:
            return
        try:
            self._label(run, cell)
        except MlflowException:  # of a parameter that another driver told in this moment
            self._label(self._client.get_run(run.info.run_id), cell)
        config = {stage.name: asdict(stage.config) | {"digest": stage.digest} for stage in cell}
        self._client.log_dict(run.info.run_id, config, "config.json")
        self._described.add((run.info.run_id, self._parent))

    def _label(self, run: Run, cell: Cell) -> None:
        # No store changes a parameter, be it from 1 to 1.0.
        new = [Param(*item) for item in params(cell).items() if item[0] not in run.data.params]
        labels = tags(cell, parent=self._parent, stages=f"{self.ledger.storage.uri}/stages")
        self._client.log_batch(
            run.info.run_id, params=new, tags=[RunTag(*item) for item in labels.items()]
        )

    def _hear(self, digest: str, records: Sequence[Record]) -> None:
        if digest not in self._heard:  # a driver before this one may have died before it told
            records = [*journal(self.ledger, digest), *records]
        for cell, stage in self._holders(digest):
            run = self._run(cell)
            if self._states[run] != "RUNNING":
                self._client.update_run(run, "RUNNING")
                self._states[run] = "RUNNING"
            self._log(run, list(dict.fromkeys(points(stage, records))))
        self._heard.add(digest)

    def _holders(self, digest: str) -> list[tuple[Cell, PlannedStage]]:
        return [
            (cell, stage) for cell in self.plan.cells for stage in cell if stage.digest == digest
        ]

    def _sync(self, cell: Cell, stands: Sequence[Standing]) -> None:
        run, state = self._runs[_key(cell)], status(stands)
        over = state in ("FINISHED", "FAILED")
        ended = self._ended_ms(cell) if over else None
        told = [
            point
            for stage, standing in zip(cell, stands, strict=True)
            if not isinstance(standing, Waiting)
            for point in curves(self.ledger, stage, standing)
        ]
        agrees = (run.info.status, run.info.end_time) == (state, ended)
        if state == "FINISHED" and not agrees and self._strays(run, told):
            # A damaged checkpoint, or a new ledger: MLflow deletes no points, so no run of them.
            self._client.delete_run(run.info.run_id)
            self._settle()
            run = self._runs[_key(cell)]
        self._log(run.info.run_id, told)
        if over:
            self._client.set_terminated(run.info.run_id, state, end_time=ended)
        elif self._states.get(run.info.run_id) != state:
            self._client.update_run(run.info.run_id, state)
        self._states[run.info.run_id] = state

    def _show(self, cell: Cell, stands: Sequence[Standing]) -> None:
        """Give a run the figures of its finished stages, those that it does not say it has."""
        run = self._runs[_key(cell)]
        for stage, standing in zip(cell, stands, strict=True):
            said = run.data.tags.get(f"{_FIGURES}.{stage.name}")
            if isinstance(standing, Finished) and said != stage.digest:
                self._upload(run.info.run_id, stage)

    def _upload(self, run: str, stage: PlannedStage) -> None:
        with TemporaryDirectory() as scratch:
            found = figures(self.ledger.stage(stage.digest), Path(scratch))
            for path, file in found.items():
                if file is not None:
                    at = PurePosixPath(stage.name, path).parent
                    self._client.log_artifact(run, str(file), str(at))
        if found and None not in found.values():
            self._client.set_tag(run, f"{_FIGURES}.{stage.name}", stage.digest)

    def _strays(self, run: Run, told: Sequence[Point]) -> bool:
        """Whether a run has points of the ledger's steps that are not the ledger's points."""
        times = {(point.key, point.step): point.time_ms for point in told}
        return any(
            times.get((m.key, m.step), m.timestamp) != m.timestamp
            for key in run.data.metrics.keys() & {point.key for point in told}
            for m in self._client.get_metric_history(run.info.run_id, key)
        )

    def _log(self, run: str, told: Sequence[Point]) -> None:
        metrics = [Metric(*point) for point in told]
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run, metrics[start : start + _METRICS_PER_BATCH])

    def _ended_ms(self, cell: Cell) -> int | None:
        attempts = self.ledger.attempts(stage.digest for stage in cell)
        return max((attempt.ended_ms or 0 for attempt in attempts), default=0) or None


def pages(uri: str, studies: Iterable[str]) -> dict[str, str]:
    """Pages, as `Mirror.page`, of the studies that a tracking store has."""
    client = connect(uri)
    found = {study: client.get_experiment_by_name(study) for study in studies}
    return {study: page(at.experiment_id) for study, at in found.items() if at is not None}


def _key(cell: Cell) -> str:
    return cell.stages[0].digest
