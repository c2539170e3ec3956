import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ablation.events import Event
from ablation.execute import never
from ablation.executors.inline import run_inline
from ablation.follow import Follower
from ablation.ledger import Ledger
from ablation.plan import Plan
from ablation.protocol import Place
from ablation.table import tabulate
from ablation.testing import ToyTrainer, ignore
from ablation.tracking import Mirror, pages

pytestmark = [
    # MLflow and its database layer leave connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


TEXTS = {"table.md": "| slow |", "table.csv": "slow", "study.yaml": "name: toys"}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def _run(plan: Plan, ledger: Ledger, place: Place, observe: Callable[[Event], None]) -> None:
    run_inline(
        plan.cells,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=place,
        observe=observe,
        should_stop=never,
    )


def _dump(uri: str) -> dict[str, object]:
    """All that a store holds of the toy study, by run name."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toys")
    found: dict[str, object] = {}
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.run_name not in found, "one run a cell"
        curves = {
            key: [
                (m.step, m.value, m.timestamp)
                for m in client.get_metric_history(run.info.run_id, key)
            ]
            for key in sorted(run.data.metrics)
        }
        found[run.info.run_name] = (run.info.status, run.data.params, curves)
    return found


def test_mirror__holds_what_the_ledger_holds(toy_plan, ledger, toy_place, uri, tmp_path):
    plan = toy_plan()
    _run(plan, ledger, toy_place, ignore)
    mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    mirror.open()
    mirror.sync(ledger.standings(plan.stages))
    dump = _dump(uri)
    assert set(dump) == {cell.title for cell in plan.cells} | {"toys (study)"}
    for cell in plan.cells:
        status, params, curves = dump[cell.title]
        assert status == "FINISHED"
        train, score = cell
        if not cell.reference:
            assert params["rate"] == str(train.config.rate)
        records = ledger.journal(train.digest)
        loss = [(r.step, r.metrics["loss"], r.time_ms) for r in records if "loss" in r.metrics]
        assert curves.get(f"{train.name}/loss", []) == loss
        assert curves["score/accuracy"][-1][1] == ledger.outcome(score.digest).metrics["accuracy"]


def test_mirror__twice_changes_nothing(toy_plan, ledger, toy_place, uri, tmp_path):
    plan = toy_plan()
    _run(plan, ledger, toy_place, ignore)
    dumps = []
    for _ in range(2):
        mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
        mirror.open()
        mirror.sync(ledger.standings(plan.stages))
        dumps.append(_dump(uri))
    assert dumps[0] == dumps[1]


def test_mirror__final_metrics_have_the_time_of_the_ledger(
    toy_plan, ledger, toy_place, uri, tmp_path
):
    plan = toy_plan()
    _run(plan, ledger, toy_place, ignore)
    mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    mirror.open()
    mirror.sync(ledger.standings(plan.stages))
    for cell in plan.cells:
        begun = ledger.stage(cell.stages[1].digest).attempts()[0].begun_ms
        (point,) = _dump(uri)[cell.title][2]["score/accuracy"]
        assert abs(point[2] - begun) < 60_000


def test_mirror__renamed_row_renames_its_run(toy_plan, ledger, toy_place, uri, tmp_path):
    for changes in ({}, {"fast | wild": "quick"}):
        plan = toy_plan(**changes)
        _run(plan, ledger, toy_place, ignore)
        mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
        mirror.open()
    names = set(_dump(uri))
    assert "quick, seed 0" in names
    assert "fast | wild, seed 0" not in names


def test_mirror__run_of_a_changed_row_leaves_its_group(toy_plan, ledger, uri, tmp_path):
    for changes in ({}, {"rate: 0.3": "rate: 0.4"}):
        mirror = Mirror(plan=toy_plan(**changes), ledger=ledger, uri=uri, artifacts=tmp_path / "a")
        mirror.open()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toys")
    rows = [run.data.tags.get("row") for run in client.search_runs([experiment.experiment_id])]
    assert rows.count("fast | wild") == 2
    assert rows.count("(no longer in the study)") == 2


def test_mirror__page_groups_by_row_and_shows_the_metric(toy_plan, ledger, uri, tmp_path):
    mirror = Mirror(plan=toy_plan(), ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    mirror.open()
    experiment = MlflowClient(uri).get_experiment_by_name("toys")
    view = json.loads(experiment.tags["mlflow.sharedViewState.study"])
    assert view["selectedColumns"] == ["metrics.`score/accuracy`"]
    assert view["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "row"}]
    assert pages(uri, ["toys", "unknown"]) == {"toys": mirror.page}
    assert f"/experiments/{experiment.experiment_id}/" in mirror.page


def test_follower__live_and_whole_agree(toy_plan, ledger, toy_place, uri, tmp_path):
    plan, warnings = toy_plan(), []
    mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    follower = Follower(mirror, warnings.append)
    _run(plan, ledger, toy_place, follower)
    standings = ledger.standings(plan.stages)
    assert follower.finish(standings, tabulate(plan, standings), TEXTS)
    assert warnings == []
    dump = _dump(uri)
    again = Mirror(plan=plan, ledger=ledger, uri=uri)
    again.open()
    again.sync(standings)
    assert _dump(uri) == dump
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toys")
    assert experiment.tags["mlflow.note.content"] == TEXTS["table.md"]
    parent = next(
        r
        for r in client.search_runs([experiment.experiment_id])
        if r.info.run_name == "toys (study)"
    )
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"table.md", "table.csv", "study.yaml", "comparison.png"} <= names


def test_follower__broken_store_is_told_and_stops_nothing(
    toy_plan, ledger, toy_place, tmp_path, monkeypatch
):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, and long enough to be seen as such")
    plan, warnings = toy_plan(), []
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 0)
    follower = Follower(Mirror(plan=plan, ledger=ledger, uri=uri), warnings.append)
    _run(plan, ledger, toy_place, follower)
    standings = ledger.standings(plan.stages)
    assert not follower.finish(standings, tabulate(plan, standings), TEXTS)
    assert len(warnings) == 1


def test_follower__dead_server_is_told_once_and_stops_nothing(
    toy_plan, ledger, toy_place, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plan, warnings = toy_plan(), []
    follower = Follower(Mirror(plan=plan, ledger=ledger, uri="http://127.0.0.1:9"), warnings.append)
    _run(plan, ledger, toy_place, follower)
    standings = ledger.standings(plan.stages)
    assert not follower.finish(standings, tabulate(plan, standings), TEXTS)
    assert len(warnings) == 1
    assert "http://127.0.0.1:9" in warnings[0]
