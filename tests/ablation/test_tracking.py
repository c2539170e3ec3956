import json
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ablation.cells import Waiting
from ablation.events import Event
from ablation.execute import never
from ablation.executors.inline import run_inline
from ablation.follow import Follower
from ablation.ledger import Ledger
from ablation.mlflow_server import TRACKING_ERRORS
from ablation.plan import Plan
from ablation.protocol import Place
from ablation.table import tabulate
from ablation.testing import ToyTrainer, ignore, new_ledger, paced, stop_after
from ablation.tracking import Mirror, pages
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS


TEXTS = {"table.md": "| slow |", "table.csv": "slow", "study.yaml": "name: toys"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without a folder for artifacts puts them into the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mirrored(ledger: Ledger, uri: str, tmp_path: Path) -> Callable[..., tuple[MlflowClient, str]]:
    """Makes the mirror whole as a new driver does; a client, and the experiment."""

    def make(plan: Plan, of: Ledger = ledger) -> tuple[MlflowClient, str]:
        mirror = Mirror(plan=plan, ledger=of, uri=uri, artifacts=tmp_path / "mlflow")
        mirror.open()
        mirror.sync()
        client = MlflowClient(uri)
        return client, client.get_experiment_by_name(plan.study.name).experiment_id

    return make


def _runs_of(client: MlflowClient, experiment: str, digest: str) -> list[Run]:
    return list(client.search_runs([experiment], f"tags.`ablation.cell` = '{digest}'"))


def _run(plan: Plan, ledger: Ledger, place: Place, observe: Callable[[Event], None]) -> None:
    run_inline(
        plan.cells,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=place,
        observe=observe,
        should_stop=never,
        terms=paced(0.0),
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
    again = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
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
    follower = Follower(
        Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow"), warnings.append
    )
    _run(plan, ledger, toy_place, follower)
    standings = ledger.standings(plan.stages)
    assert not follower.finish(standings, tabulate(plan, standings), TEXTS)
    assert len(warnings) == 1


def test_mirror__store_that_is_taken_away_raises_and_prints_nothing(
    toy_plan, ledger, toy_place, tmp_path, capfd
):
    """A store of MLflow's own logs a traceback beside each error of its database."""
    file, plan = tmp_path / "mlflow.db", toy_plan()
    mirror = Mirror(
        plan=plan, ledger=ledger, uri=f"sqlite:///{file}", artifacts=tmp_path / "mlflow"
    )
    mirror.open()
    _run(plan, ledger, toy_place, lambda event: None)
    file.rename(tmp_path / "away.db")
    capfd.readouterr()
    with pytest.raises(TRACKING_ERRORS):
        mirror.sync()
    assert capfd.readouterr().err == ""


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


def test_mirror__many_that_begin_at_once_end_with_one_run_a_cell(
    toy_plan, ledger, toy_place, uri, tmp_path
):
    plan, together, errors = toy_plan(), threading.Barrier(3), []
    _run(plan, ledger, toy_place, ignore)
    MlflowClient(uri).search_experiments()  # makes the database
    mirrors = [
        Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow") for _ in range(3)
    ]

    def begin(mirror: Mirror) -> None:
        together.wait()
        try:
            mirror.open()
        except TRACKING_ERRORS as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(mirror,)) for mirror in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for mirror in mirrors:
        mirror.sync()
    assert set(_dump(uri)) == {cell.title for cell in plan.cells} | {"toys (study)"}


def test_mirror__of_several_runs_the_oldest_is_the_one(toy_plan, mirrored):
    plan = toy_plan()
    client, experiment = mirrored(plan)
    for key, tag in ((plan.cells[0].stages[0].digest, "ablation.cell"), ("toys", "ablation.study")):
        found = client.search_runs([experiment], f"tags.`{tag}` = '{key}'")
        start = found[0].info.start_time
        made = [
            client.create_run(experiment, start_time=start + later, tags={tag: key})
            for later in (1, -5, -9, -9, -9, 7)
        ]
        mirrored(plan)
        (kept,) = client.search_runs([experiment], f"tags.`{tag}` = '{key}'")
        assert kept.info.run_id == min(run.info.run_id for run in made[2:5])


def test_mirror__goes_on_in_the_older_run_where_another_driver_deleted_its_own(
    toy_plan, ledger, toy_place, uri, tmp_path
):
    plan, heard = toy_plan(), []
    _run(plan, ledger, toy_place, heard.append)
    mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    mirror.open()
    client, train = MlflowClient(uri), plan.cells[0].stages[0]
    experiment = client.get_experiment_by_name("toys").experiment_id
    told = [event for event in heard if event.digest == train.digest and event.records]
    for event, age in zip(told, (1, 2, 3), strict=False):
        (run,) = _runs_of(client, experiment, train.digest)
        client.delete_run(run.info.run_id)
        older = client.create_run(experiment, 1_000 - age, {"ablation.cell": train.digest})
        mirror.log(event.digest, event.records)
        curve = client.get_metric_history(older.info.run_id, "train/loss")
        assert [point.step for point in curve] == [1, 2, 3]
    client.delete_run(older.info.run_id)
    mirror.sync()
    assert len(_runs_of(client, experiment, train.digest)) == 1


def test_mirror__takes_no_run_of_others_for_its_own(toy_plan, mirrored):
    plan = toy_plan()
    client, experiment = mirrored(plan)
    theirs = client.create_run(experiment, run_name="my notebook", start_time=1)
    mirrored(plan)
    found = client.get_run(theirs.info.run_id)
    assert found.info.lifecycle_stage == "active"
    assert "row" not in found.data.tags
    assert "my notebook" in _dump(client.tracking_uri)


def test_mirror__experiment_that_was_deleted_comes_back(toy_plan, mirrored):
    client, experiment = mirrored(toy_plan())
    client.delete_experiment(experiment)
    assert mirrored(toy_plan())[1] == experiment


def test_mirror__run_that_was_deleted_is_begun_anew(toy_plan, ledger, toy_place, mirrored):
    plan = toy_plan()
    _run(plan, ledger, toy_place, ignore)
    client, experiment = mirrored(plan)
    dump = _dump(client.tracking_uri)
    (run,) = _runs_of(client, experiment, plan.cells[0].stages[0].digest)
    client.delete_run(run.info.run_id)
    mirrored(plan)
    assert _dump(client.tracking_uri) == dump


def test_mirror__parameters_once_told_stay(toy_plan, mirrored, uri, tmp_path):
    plan = toy_plan()
    client = MlflowClient(uri)
    experiment = client.create_experiment("toys", (tmp_path / "mlflow").as_uri())
    key = plan.cells[0].stages[0].digest
    run = client.create_run(experiment, tags={"ablation.cell": key})
    client.log_param(run.info.run_id, "rate", "1e-1")
    mirrored(plan)
    params = client.get_run(run.info.run_id).data.params
    assert (params["rate"], params["steps"]) == ("1e-1", "3")


def test_mirror__has_no_points_of_a_ledger_before_this_one(toy_plan, toy_place, tmp_path, mirrored):
    plan, dumps = toy_plan(), []
    for name in ("first", "second"):
        ledger = new_ledger(tmp_path / name)
        _run(plan, ledger, toy_place, ignore)
        client, _ = mirrored(plan, ledger)
        dumps.append(_dump(client.tracking_uri))
        _check_curves(dumps[-1], plan, ledger)
    assert dumps[0] != dumps[1]


def test_mirror__has_no_point_twice_where_damage_undid_steps(
    toy_plan, ledger, toy_place, uri, tmp_path
):
    plan = toy_plan()
    train = plan.cells[0].stages[0]
    mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    mirror.open()

    def tell(event: Event) -> None:
        mirror.log(event.digest, event.records)

    run = partial(run_inline, plan.cells, trainer=ToyTrainer(), ledger=ledger, place=toy_place)
    run(observe=tell, should_stop=stop_after(3), terms=paced(0.0))
    (newest, *_) = ledger.stage(train.digest).commits()
    assert newest.step == 2
    folder = tmp_path / "ledger/stages" / train.digest / "checkpoints" / newest.name
    for file in folder.rglob("*.*"):
        file.write_bytes(b"damaged")
    run(observe=tell)
    assert len(ledger.attempts([train.digest])) == 2
    mirror.sync()
    _check_curves(_dump(uri), plan, ledger)


def _check_curves(dump: dict[str, Any], plan: Plan, ledger: Ledger) -> None:
    """The trainings' curves are the ledger's, point by point."""
    for cell in plan.cells:
        if not cell.reference:
            records = ledger.journal(cell.stages[0].digest)
            loss = [(r.step, r.metrics["loss"], r.time_ms) for r in records]
            assert dump[cell.title][2]["train/loss"] == loss
        assert len(dump[cell.title][2]["score/accuracy"]) == 1


def test_mirror__run_that_says_the_same_is_kept(toy_plan, ledger, toy_place, mirrored):
    plan = toy_plan()
    _run(plan, ledger, toy_place, ignore)
    runs = []
    for _ in range(2):
        client, experiment = mirrored(plan)
        runs.append({run.info.run_id for run in client.search_runs([experiment])})
    assert runs[0] == runs[1]


def test_mirror__first_news_of_a_stage_bring_what_an_earlier_driver_did_not_tell(
    toy_plan, ledger, toy_place, uri, tmp_path
):
    plan, heard = toy_plan(), []
    _run(plan, ledger, toy_place, heard.append)
    train = plan.cells[0].stages[0]
    last = next(event for event in reversed(heard) if event.digest == train.digest)
    mirror = Mirror(plan=plan, ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow")
    mirror.open()
    mirror.sync({digest: Waiting() for digest in plan.stages})
    assert _dump(uri)[plan.cells[0].title][0] == "SCHEDULED"
    mirror.log(train.digest, last.records)
    status, _, curves = _dump(uri)[plan.cells[0].title]
    assert status == "RUNNING"
    journal = ledger.journal(train.digest)
    assert [point[0] for point in curves["train/loss"]] == [record.step for record in journal]


def test_mirror__damaged_journal_keeps_no_other_run_from_being_told(
    toy_plan, ledger, toy_place, tmp_path, mirrored, caplog
):
    plan = toy_plan()
    _run(plan, ledger, toy_place, ignore)
    damaged = plan.cells[0].stages[0]
    for file in (tmp_path / "ledger/stages" / damaged.digest / "journal").iterdir():
        file.write_bytes(b"{}")
    client, _ = mirrored(plan)
    dump = _dump(client.tracking_uri)
    assert "told nothing of a journal that is damaged" in caplog.text
    assert "score/accuracy" in dump[plan.cells[0].title][2]
    assert all("train/loss" in dump[c.title][2] for c in plan.cells[1:] if not c.reference)


def test_mirror__settings_of_the_environment_are_kept(toy_plan, ledger, uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Mirror(plan=toy_plan(), ledger=ledger, uri=uri, artifacts=tmp_path / "mlflow").open()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
