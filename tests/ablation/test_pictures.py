"""What stages export under `figures/`, in MLflow."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ablation.execute import never
from ablation.executors.inline import run_inline
from ablation.ledger import Ledger
from ablation.plan import Plan
from ablation.protocol import Place
from ablation.testing import ignore, new_ledger, paced, stop_after
from ablation.tracking import Mirror
from chaos.proxy import Fault
from drawing import FIGURES, Drawing
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

Mirrored = Callable[..., Mirror]
ONE_SEED = {"seeds: [0, 1]": "seeds: [0]"}


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


@pytest.fixture
def mirrored(ledger: Ledger, client: MlflowClient, tmp_path: Path) -> Mirrored:
    """Makes the mirror whole as a new driver does."""

    def make(plan: Plan, of: Ledger = ledger) -> Mirror:
        at = tmp_path / "mlflow"
        mirror = Mirror(plan=plan, ledger=of, uri=client.tracking_uri, artifacts=at)
        mirror.open()
        mirror.sync()
        return mirror

    return make


@pytest.fixture
def plan(toy_plan: Callable[..., Plan]) -> Plan:
    """Two rows and a reference."""
    return toy_plan(**ONE_SEED)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Grows by the run and the path of every file that is uploaded into a folder."""
    seen, upload = [], MlflowClient.log_artifact

    def note(self: MlflowClient, run: str, file: str, at: str | None = None) -> None:
        if at is not None:  # else it is one that says what the run is
            seen.append((run, f"{at}/{Path(file).name}"))
        upload(self, run, file, at)

    monkeypatch.setattr(MlflowClient, "log_artifact", note)
    return seen


def _run(
    plan: Plan, ledger: Ledger, place: Place, drawn: Mapping[str, bytes] = FIGURES, **options: Any
) -> None:
    run_inline(
        plan.cells,
        trainer=Drawing(drawn=drawn),
        ledger=ledger,
        place=place,
        observe=ignore,
        should_stop=options.get("should_stop", never),
        terms=paced(0.0),
    )


def _runs(client: MlflowClient, plan: Plan) -> dict[str, Run]:
    experiment = client.get_experiment_by_name(plan.study.name).experiment_id
    return {run.info.run_name: run for run in client.search_runs([experiment])}


def _shown(client: MlflowClient, run: Run) -> dict[str, bytes]:
    """The files below folders of a run, by their path."""
    found, left = {}, [item for item in client.list_artifacts(run.info.run_id) if item.is_dir]
    while left:
        item = left.pop()
        if item.is_dir:
            left += client.list_artifacts(run.info.run_id, item.path)
        else:
            local = client.download_artifacts(run.info.run_id, item.path)
            found[item.path] = Path(local).read_bytes()
    return found


EXPECTED = {f"train/{path}": content for path, content in FIGURES.items()}


def test_figures__are_those_of_the_stages_that_have_some(plan, ledger, toy_place, client, mirrored):
    _run(plan, ledger, toy_place)
    mirrored(plan)
    runs = _runs(client, plan)
    for cell in plan.cells:
        assert _shown(client, runs[cell.title]) == ({} if cell.reference else EXPECTED)
    assert _shown(client, runs["toys (study)"]) == {}


def test_figures__are_uploaded_once(plan, ledger, toy_place, mirrored, uploads):
    _run(plan, ledger, toy_place)
    mirror = mirrored(plan)
    once = list(uploads)
    assert len(once) == len(set(once)) == 2 * len(FIGURES)
    mirror.sync()
    mirrored(plan)
    assert uploads == once


def test_figures__of_an_unfinished_stage_wait_for_its_end(
    plan, ledger, toy_place, client, mirrored
):
    _run(plan, ledger, toy_place, should_stop=stop_after(2))
    mirrored(plan)
    assert not any(_shown(client, run) for run in _runs(client, plan).values())
    _run(plan, ledger, toy_place)
    mirrored(plan)
    assert _shown(client, _runs(client, plan)[plan.cells[0].title]) == EXPECTED


def test_figures__of_a_shared_stage_are_in_both_studies(
    plan, toy_plan, ledger, toy_place, client, mirrored
):
    plans = [plan, toy_plan(**ONE_SEED, **{"name: toys": "name: others"})]
    assert plans[0].stages == plans[1].stages
    _run(plans[0], ledger, toy_place)
    for each in plans:
        mirrored(each)
        assert _shown(client, _runs(client, each)[each.cells[0].title]) == EXPECTED


def test_figures__come_to_a_run_that_was_mirrored_without_them(
    plan, ledger, toy_place, client, mirrored, monkeypatch
):
    _run(plan, ledger, toy_place)
    with monkeypatch.context() as before:
        before.setattr(Mirror, "_show", lambda *_: None)
        mirrored(plan)
    bare = _runs(client, plan)
    mirrored(plan)
    runs = _runs(client, plan)
    assert _shown(client, runs[plan.cells[0].title]) == EXPECTED
    assert {name: run.info.run_id for name, run in runs.items()} == {
        name: run.info.run_id for name, run in bare.items()
    }


def test_figures__of_a_ledger_before_this_one_are_replaced(
    plan, toy_place, tmp_path, client, mirrored
):
    for name in ("first", "second"):
        drawn = {f"figures/{name}.txt": name.encode()}
        ledger = new_ledger(tmp_path / name)
        _run(plan, ledger, toy_place, drawn)
        mirrored(plan, ledger)
        shown = _shown(client, _runs(client, plan)[plan.cells[0].title])
        assert shown == {f"train/{path}": content for path, content in drawn.items()}


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"damaged")])
def test_figures__that_are_damaged_are_told_of_and_come_when_they_are_sound_again(
    damage, plan, ledger, toy_place, tmp_path, client, mirrored, caplog
):
    _run(plan, ledger, toy_place)
    stage = tmp_path / "ledger" / "stages" / plan.cells[0].stages[0].digest
    (file,) = stage.glob("artifacts/*/figures/curve.txt")
    damage(file)
    mirrored(plan)
    runs = _runs(client, plan)
    assert "not given a figure" in caplog.text
    assert "figures/curve.txt must" in caplog.text
    rest = {path: content for path, content in EXPECTED.items() if "curve" not in path}
    assert _shown(client, runs[plan.cells[0].title]) == rest
    assert _shown(client, runs[plan.cells[1].title]) == EXPECTED
    assert all(runs[cell.title].info.status == "FINISHED" for cell in plan.cells)
    file.write_bytes(FIGURES["figures/curve.txt"])
    mirrored(plan)
    assert _shown(client, _runs(client, plan)[plan.cells[0].title]) == EXPECTED


def test_figures__with_a_name_that_a_url_would_change_are_told_of(
    plan, ledger, toy_place, client, mirrored, caplog
):
    _run(plan, ledger, toy_place, {"figures/step #1.png": b"1", "figures/step 2.png": b"2"})
    mirrored(plan)
    assert "figures/step #1.png must be" in caplog.text
    shown = _shown(client, _runs(client, plan)[plan.cells[0].title])
    assert shown == {"train/figures/step 2.png": b"2"}


def test_figures__of_a_ledger_elsewhere_are_fetched_alone(plan, toy_place, client, mirrored, s3):
    ledger = s3.ledger()
    _run(plan, ledger, toy_place)
    s3.proxy.faults = [
        Fault("refuse", when=lambda r: "/artifacts/" in r.path and "state" in r.path)
    ]
    mirrored(plan, ledger)
    assert s3.proxy.counts["refuse"] == 0
    assert _shown(client, _runs(client, plan)[plan.cells[0].title]) == EXPECTED
