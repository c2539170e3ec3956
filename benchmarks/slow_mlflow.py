"""What an MLflow in trouble costs training: the same steps with a mirror of each kind, and none.

    python benchmarks/slow_mlflow.py [--seconds 60] [--rounds 5]

The quickstart's pretraining goes through `execute` in this process, in legs of equally many steps,
and a `Follower` hears of it as in `ablation run`. Its thread shares the interpreter with training,
which on a cluster it does not; and a leg has some 200 records and a commit a second, so there is
far more to tell than in a real run. MLflow is in turn: none; well (the embedded store, the default,
its database made before); hanging for 10 s at each request, then gone; answering 500; refusing.

The ratio of seconds per step to the leg without is as noisy as the machine. What is not: the share
of the time that training spent in the observer, and the CPU time of the mirror's thread, during
which training may have waited for the interpreter.
"""

import argparse
import json
import math
import os
import platform
import shutil
import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ablation.events import Event
from ablation.execute import execute
from ablation.follow import Follower
from ablation.ledger import Ledger
from ablation.pace import Pace
from ablation.plan import Plan, plan
from ablation.protocol import Place
from ablation.study import load_study
from ablation.table import tabulate
from ablation.terms import Terms
from ablation.testing import new_ledger
from ablation.tracking import Mirror
from hpm.trainer import TRAINER

_HANG_S = 10.0
_EPOCH_STEPS = 500
_WARM_UP_STEPS = 20
_MODES = ("none", "well", "hanging", "error", "refusing")
_STUDY = """
name: slow
trainer: hpm
preset: vit_pico_32px
seeds: [0, 1, 2]
evaluate: [knn]
metric: knn/top1
baseline: MAE
set: {{epochs: {epochs}}}
rows:
  MAE: {{predictor.objective: none, mask.hard_share: 0.0}}
  HPM: {{predictor.objective: relative, mask.hard_share: [0.0, 0.5]}}
"""


@dataclass(slots=True, kw_only=True)
class Leg:
    """So many steps after a few to warm up, as their observer sees them."""

    steps: int
    follower: Follower | None
    said: list[str]
    wall_s: float = 0.0
    observing_s: list[float] = field(default_factory=list)
    """One entry a step."""
    mirror_cpu_s: float = 0.0
    fastest_s: float = math.inf
    """The fastest step."""
    over: bool = False
    _went_on: float = -math.inf

    def observe(self, event: Event) -> None:
        began = time.perf_counter()
        if self.follower is not None:
            self.follower(event)
        ended = time.perf_counter()
        if event.kind != "progress":  # once a stage, or told by the thread that commits
            return
        self.fastest_s, self._went_on = min(self.fastest_s, began - self._went_on), ended
        if event.step == _WARM_UP_STEPS:
            self.wall_s, self.mirror_cpu_s = -ended, -_mirror_cpu_s()
        elif event.step > _WARM_UP_STEPS and not self.over:
            self.observing_s.append(ended - began)
        if event.step == _WARM_UP_STEPS + self.steps:
            self.wall_s += ended
            self.mirror_cpu_s += _mirror_cpu_s()
            self.over = True

    def report(self) -> dict[str, float]:
        return {
            "seconds per step": self.wall_s / self.steps,
            "in the observer, % of the time": 100 * sum(self.observing_s) / self.wall_s,
            "longest call of it, ms": 1000 * max(self.observing_s),
            "CPU of the mirror, % of the time": 100 * self.mirror_cpu_s / self.wall_s,
            "times that the user was told": len(self.said),
        }


def _mirror_cpu_s() -> float:
    """CPU time of the thread that tells MLflow; 0 where there is none."""
    clocks = (
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name == "mirror" and thread.ident
    )
    return sum(map(time.clock_gettime, clocks))


@contextmanager
def tracking(mode: str, folder: Path, store: Path) -> Generator[str]:
    """URI of an MLflow that is as `mode` says."""
    if mode == "well":
        yield f"sqlite:///{shutil.copy(store, folder / 'mlflow.db')}"
    elif mode == "refusing":
        with socket.socket() as bound:  # and nobody listens
            bound.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    else:
        with _server(mode) as uri:
            yield uri


@contextmanager
def _server(mode: str) -> Generator[str]:
    over = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            if mode == "hanging":
                over.wait(_HANG_S)
                self.close_connection = True
            else:
                super().handle_one_request()

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}"
        finally:
            over.set()
            served.shutdown()


def run(mode: str, steps: int, store: Path) -> Leg:
    """One leg, on a ledger of its own."""
    study = _planned(steps, store.parent)
    said: list[str] = []
    leg = Leg(steps=steps, follower=None, said=said)
    with TemporaryDirectory(prefix="slow-mlflow-") as name:
        ledger = new_ledger(Path(name) / "ledger")
        if mode == "none":
            _train(study, ledger, leg)
            return leg
        with tracking(mode, Path(name), store) as uri:
            mirror = Mirror(plan=study, ledger=ledger, uri=uri, artifacts=Path(name) / "mlflow")
            leg.follower = Follower(mirror, said.append)
            _train(study, ledger, leg)
            told = len(said)
            if mode == "well":
                assert _finish(leg.follower, study, ledger), said
        if mode != "well":  # its server is gone by now, so the thread soon ends
            assert not _finish(leg.follower, study, ledger)
        del said[told:]
    return leg


def _train(study: Plan, ledger: Ledger, leg: Leg) -> None:
    result = execute(
        study.cells[1].stages[0],
        trainer=TRAINER,
        ledger=ledger,
        place=Place(),
        observe=leg.observe,
        should_stop=lambda: leg.over,
        terms=Terms(pace=Pace(least_s=1.0, most_s=1.0)),
    )
    assert result == "stopped", result


def _finish(follower: Follower, study: Plan, ledger: Ledger) -> bool:
    standings = ledger.standings(study.stages)
    return follower.finish(standings, tabulate(study, standings), {"table.md": ""})


def _planned(steps: int, folder: Path) -> Plan:
    """A study whose trainings are a little longer than a leg."""
    path = folder / "study.yaml"
    epochs = math.ceil((_WARM_UP_STEPS + steps + 1) / _EPOCH_STEPS)
    path.write_text(_STUDY.format(epochs=epochs))
    return plan(load_study(path), TRAINER, Place())


def summarise(rounds: Sequence[Mapping[str, Leg]]) -> dict[str, dict[str, float]]:
    """Medians over rounds; ratios are within a round."""
    found = {}
    for mode in _MODES:
        reports = [legs[mode].report() for legs in rounds]
        ratio = median(legs[mode].wall_s / legs["none"].wall_s for legs in rounds)
        medians = {name: median(report[name] for report in reports) for name in reports[0]}
        values = {**medians, "ratio to none": ratio}
        found[mode] = {name: round(value, 4) for name, value in values.items()}
    return found


def main() -> None:
    """Print medians and all ratios, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a leg, at least")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with TemporaryDirectory(prefix="slow-mlflow-") as name:
        store = Path(name) / "mlflow.db"
        # Noise makes steps slower, never faster.
        steps = round(given.seconds / run("none", 100, store).fastest_s)
        study, ledger = _planned(steps, Path(name)), new_ledger(name)
        Mirror(plan=study, ledger=ledger, uri=f"sqlite:///{store}").open()
        rounds = [{mode: run(mode, steps, store) for mode in _MODES} for _ in range(given.rounds)]
    ratios = {
        mode: [round(legs[mode].wall_s / legs["none"].wall_s, 4) for legs in rounds]
        for mode in _MODES[1:]
    }
    found: dict[str, Any] = {"steps": steps, "medians": summarise(rounds), "ratios": ratios}
    machine = {"cpus": os.cpu_count(), "mlflow": version("mlflow")}
    print(json.dumps({**found, **machine, "python": platform.python_version()}, indent=1))


if __name__ == "__main__":
    main()
