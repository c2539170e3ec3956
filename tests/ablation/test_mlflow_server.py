"""The mirror on MLflow's own server, which answers as it must only when the test lets it."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ablation.execute import never
from ablation.executors.inline import run_inline
from ablation.follow import Follower
from ablation.mlflow_server import try_out
from ablation.plan import Plan
from ablation.protocol import Place
from ablation.table import tabulate
from ablation.testing import ToyTrainer, ignore, paced, stop_after
from ablation.tracking import Mirror
from drawing import FIGURES, Drawing

# MLflow's server warns of what it is built of, and leaves connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = {"table.md": "| slow |"}
SOON = (0.02, 0.1)
TOY = ToyTrainer()
Answer = Iterable[bytes]
_numbers = count()
Application = Callable[[dict[str, Any], Any], Answer]


@dataclass
class Server:
    """MLflow's application, behind what a test puts before it: `trouble`, asked at each request.

    Drivers may reach it by addresses of their own, `uri/driver-1`, and be `dead`.
    """

    application: Application
    uri: str = ""
    trouble: Callable[["Server", dict[str, Any], Any], Answer] | None = None
    dead: set[str] = field(default_factory=set)

    def __call__(self, environ: dict[str, Any], start: Any) -> Answer:
        driver, _, path = environ["PATH_INFO"].removeprefix("/").partition("/")
        if driver.startswith("driver-"):
            environ["PATH_INFO"] = f"/{path}"
        # MLflow's client keeps the address of a run's artifacts, and those here are one process.
        if driver in self.dead and "mlflow-artifacts" not in path:
            return _answer("503 Service Unavailable")(self, environ, start)
        if self.trouble is None:
            return self.application(environ, start)
        return self.trouble(self, environ, start)


def _answer(status: str, *headers: tuple[str, str], body: bytes = b"") -> Any:
    def answer(server: Server, environ: dict[str, Any], start: Any) -> Answer:
        _drain(environ)
        start(status, [("Content-Length", str(len(body))), *headers])
        return [body]

    return answer


def _lose_answer(server: Server, environ: dict[str, Any], start: Any) -> Answer:
    """Do what is asked, and say that it failed."""
    list(server.application(environ, lambda *_: None))
    return _answer("500 Internal Server Error")(server, environ, start)


def _drain(environ: dict[str, Any]) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app
        from werkzeug.serving import make_server

        server = Server(app)
        http = make_server("127.0.0.1", 0, server, threaded=True)
        server.uri = f"http://127.0.0.1:{http.port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        MlflowClient(server.uri).search_runs(["0"])  # for the first one it makes its database
        yield server
        http.shutdown()


@pytest.fixture
def server(application: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, well; its clients do not try again by themselves."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    application.trouble = None
    yield application
    application.trouble = None


@pytest.fixture
def plan(toy_plan):
    """That of a study of its own: the server keeps the others'."""
    return toy_plan(
        **{"name: toys": f"name: toys {next(_numbers)}", "rate: 0.1": "rate: 0.1, steps: 9"}
    )


@pytest.fixture
def mirror(plan, ledger, server) -> Callable[[], Mirror]:
    return lambda: Mirror(plan=plan, ledger=ledger, uri=server.uri)


def _run(plan, ledger, place: Place, observe=ignore, should_stop=never, *, trainer=TOY) -> None:
    run_inline(
        plan.cells,
        trainer=trainer,
        ledger=ledger,
        place=place,
        observe=observe,
        should_stop=should_stop,
        terms=paced(0.0),
    )


def _dump(uri: str, plan: Plan) -> dict[str, tuple[str, dict[str, list[tuple[int, int, float]]]]]:
    """Status and curves of every run of the study by its name."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(plan.study.name)
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.run_name not in found, "one run a cell"
        curves = {
            key: sorted(
                (m.step, m.timestamp, m.value)
                for m in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        found[run.info.run_name] = (run.info.status, curves)
    return found


def _check(uri: str, plan, ledger) -> None:
    """MLflow has what the ledger has: all of it, nothing else and nothing twice."""
    dump = _dump(uri, plan)
    assert set(dump) == {cell.title for cell in plan.cells} | {f"{plan.study.name} (study)"}
    for cell in plan.cells:
        status, curves = dump[cell.title]
        assert status == "FINISHED"
        for stage in cell:
            expected: dict[str, list[tuple[int, int, float]]] = {}
            for record in ledger.journal(stage.digest):
                for name, value in record.metrics.items():
                    point = (record.step, record.time_ms, value)
                    expected.setdefault(f"{stage.name}/{name}", []).append(point)
            for key, points in expected.items():
                assert curves[key] == points


def _finish(follower: Follower, plan, ledger) -> bool:
    standings = ledger.standings(plan.stages)
    return follower.finish(standings, tabulate(plan, standings), TEXTS)


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_server__is_told_and_stdout_is_not(server, plan, ledger, toy_place, mirror, capsys):
    said = []
    follower = Follower(mirror(), said.append)
    _run(plan, ledger, toy_place, follower)
    assert _finish(follower, plan, ledger)
    assert said == []
    assert capsys.readouterr().out == ""
    _check(server.uri, plan, ledger)


@pytest.mark.parametrize(
    "trouble",
    [
        _answer("500 Internal Server Error"),
        _answer("503 Service Unavailable", ("Retry-After", "3600")),
        _answer("200 OK", ("Content-Type", "text/html"), body=b"<html>Log in</html>"),
        _answer("200 OK", body=b"{}"),
        _answer("403 Forbidden", body=b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
        _lose_answer,
    ],
    ids=["error", "busy", "portal", "empty", "denied", "lost"],
)
def test_server__that_comes_back_is_caught_up(
    trouble, server, plan, ledger, toy_place, mirror, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server.trouble, said = trouble, []
    follower = Follower(mirror(), said.append, pauses_s=SOON)
    _run(plan, ledger, toy_place, follower)
    _until(lambda: said)
    server.trouble = None
    _until(lambda: len(said) == 2)
    assert server.uri in said[0]
    assert "caught up" in said[1]
    told = _dump(server.uri, plan)
    train = plan.cells[0].stages[0]
    assert len(told[plan.cells[0].title][1]["train/loss"]) == len(ledger.journal(train.digest))
    assert _finish(follower, plan, ledger)
    assert len(said) == 2
    _check(server.uri, plan, ledger)


def test_server__that_refuses_figures_has_every_number_and_gets_them_later(
    server, plan, ledger, toy_place, mirror
):
    said: list[str] = []

    def refuse(server: Server, environ: dict[str, Any], start: Any) -> Answer:
        if "/figures/" in environ["PATH_INFO"]:
            return _answer("507 Insufficient Storage")(server, environ, start)
        return server.application(environ, start)

    server.trouble = refuse
    follower = Follower(mirror(), said.append)
    _run(plan, ledger, toy_place, follower, trainer=Drawing())
    assert not _finish(follower, plan, ledger)
    assert len(said) == 1
    _check(server.uri, plan, ledger)
    server.trouble, client = None, MlflowClient(server.uri)
    again = mirror()
    again.open()
    again.sync()
    experiment = client.get_experiment_by_name(plan.study.name).experiment_id
    (run,) = client.search_runs([experiment], f"tags.mlflow.runName = '{plan.cells[0].title}'")
    for path, content in FIGURES.items():
        local = client.download_artifacts(run.info.run_id, f"train/{path}")
        assert Path(local).read_bytes() == content


def test_server__hangs_and_holds_up_neither_training_nor_the_end(
    server, plan, ledger, toy_place, mirror, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    over, said = threading.Event(), []

    def hang(server: Server, environ: Any, start: Any) -> Answer:
        over.wait(20)
        return _answer("503 Service Unavailable")(server, environ, start)

    server.trouble = hang
    follower = Follower(mirror(), said.append)
    _run(plan, ledger, toy_place, follower)
    begun = time.monotonic()
    assert not _finish(follower, plan, ledger)
    assert time.monotonic() - begun < 8  # what is asked now, and once again
    over.set()
    assert len(said) == 1
    assert "timeout" in said[0]


def test_server__flickers_through_five_resumptions(
    server, plan, ledger, toy_place, mirror, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    chance = random.Random(0)
    answers = [_answer("500 Internal Server Error"), _lose_answer]

    def flicker(server: Server, environ: Any, start: Any) -> Answer:
        if chance.random() < 0.05:
            return chance.choice(answers)(server, environ, start)
        return server.application(environ, start)

    server.trouble = flicker
    for number, steps in enumerate((2, 4, 3, 5, 4)):
        driver = f"driver-{number}"
        its = Mirror(plan=plan, ledger=ledger, uri=f"{server.uri}/{driver}")
        follower = Follower(its, ignore_text, pauses_s=SOON)
        _run(plan, ledger, toy_place, follower, stop_after(steps))
        time.sleep(chance.random())
        server.dead.add(driver)
        assert not _finish(follower, plan, ledger)  # or its thread would ask on and on
    follower = Follower(mirror(), ignore_text, pauses_s=SOON)
    _run(plan, ledger, toy_place, follower)
    server.trouble = None
    assert _finish(follower, plan, ledger)
    _check(server.uri, plan, ledger)


def test_mirror__that_loses_the_race_to_restore_the_experiment_takes_it(server, plan, mirror):
    mirror().open()
    client = MlflowClient(server.uri)
    client.delete_experiment(client.get_experiment_by_name(plan.study.name).experiment_id)
    _before_first(server, "experiments/restore", mirror().open)
    mirror().open()
    assert server.trouble is None
    assert len(_dump(server.uri, plan)) == 7


def test_mirror__that_loses_the_race_for_the_experiment_takes_the_winners(server, plan, mirror):
    _before_first(server, "experiments/create", mirror().open)
    mirror().open()
    assert server.trouble is None
    assert len(_dump(server.uri, plan)) == 7


@pytest.mark.parametrize("last", ["winner", "loser"])
def test_mirror__two_that_begin_at_once_end_with_one_run_a_cell(
    last, server, plan, ledger, toy_place, mirror
):
    """The one that began first is kept at its first run while the other makes all of its runs."""
    _run(plan, ledger, toy_place)
    first, second = mirror(), mirror()
    _before_first(server, "runs/create", second.open)
    first.open()
    assert server.trouble is None
    for each in [first, second] if last == "loser" else [second, first]:
        each.sync()
    _check(server.uri, plan, ledger)


def test_mirror__four_that_begin_at_once_end_with_one_run_a_cell(
    server, plan, ledger, toy_place, mirror
):
    _run(plan, ledger, toy_place)
    together, mirrors = threading.Barrier(4), [mirror() for _ in range(4)]

    def begin(mirror: Mirror) -> None:
        together.wait()
        mirror.open()

    threads = [threading.Thread(target=begin, args=(each,)) for each in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in mirrors:
        each.sync()
    _check(server.uri, plan, ledger)


def test_mirror__asks_for_half_a_minute_whatever_a_server_says(server, mirror, monkeypatch):
    for name in ("TIMEOUT", "MAX_RETRIES"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}")
    asked = []

    def refuse(server: Server, environ: Any, start: Any) -> Answer:
        asked.append(time.monotonic())
        busy = _answer("503 Service Unavailable", ("Retry-After", "3600"))
        return busy(server, environ, start)

    server.trouble = refuse
    with pytest.raises(MlflowException):
        mirror().open()
    assert len(asked) * MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 30
    assert asked[-1] - asked[0] < 20


def _before_first(server: Server, path: str, act: Callable[[], None]) -> None:
    """Act when a path is first asked for, before that is answered."""

    def trouble(server: Server, environ: dict[str, Any], start: Any) -> Answer:
        if environ["PATH_INFO"].endswith(path):
            server.trouble = None
            act()
        return server.application(environ, start)

    server.trouble = trouble


def ignore_text(text: str) -> None:
    pass


def test_try_out__leaves_no_run(server):
    import mlflow

    for _ in range(2):
        assert try_out(server.uri) == mlflow.__version__
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("ablation-doctor")
    assert not client.search_runs([experiment.experiment_id])


def test_try_out__of_a_server_that_takes_no_run(server):
    def refuse(server: Server, environ: dict[str, Any], start: Any) -> Answer:
        if environ["PATH_INFO"].endswith("runs/create"):
            return _answer("403 Forbidden", body=b"Permission denied")(server, environ, start)
        return server.application(environ, start)

    server.trouble = refuse
    with pytest.raises(MlflowException, match="Permission denied"):
        try_out(server.uri)
