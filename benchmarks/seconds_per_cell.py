"""What a cell costs before it computes: eight cells whose stages do nothing, on two schedulers.

    python benchmarks/seconds_per_cell.py [CELLS]

Ours is the cluster executor with one worker a cell. The other is what Ray's guide shows: a Tune
trial that starts a TorchTrainer with one worker. Both run one after the other on one machine; the
ratio is what counts.
"""

import json
import logging
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import ray
from ray import train, tune
from ray.train.torch import TorchConfig, TorchTrainer

from ablation.events import Event
from ablation.executors.cluster import run_cluster
from ablation.layout import Layout
from ablation.protocol import Place
from ablation.testing import Toy, ToyScore, ToyTrainer, new_ledger, toy_cell


def ours(count: int, folder: Path) -> list[float]:
    """Times at which cells ended, in seconds since the executor was called."""
    cells = [
        toy_cell(f"row {i}", Toy(steps=1, rate=0.1 + i), score=ToyScore(steps=1))
        for i in range(count)
    ]
    ends: list[float] = []
    start = time.monotonic()

    def observe(event: Event) -> None:
        if event.kind == "finished" and event.name == "score":
            ends.append(time.monotonic() - start)

    (folder / "scratch").mkdir()
    lost = run_cluster(
        cells,
        trainer=ToyTrainer(),
        ledger=new_ledger(folder / "ledger"),
        place=Place(data={"scratch": folder / "scratch"}),
        layout=Layout(concurrency=1),
        observe=observe,
    )
    assert not lost
    assert len(ends) == count
    return ends


def nested(count: int, folder: Path) -> list[float]:
    """The same for trials that start a worker group each."""
    start = time.time()

    def work() -> None:
        pass

    def trial(config: dict[str, int]) -> None:
        TorchTrainer(
            work,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(name=f"cell-{config['cell']}", storage_path=str(folder)),
        ).fit()
        tune.report({"end": time.time()})

    results = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0, "node:__internal_head__": 0.001}),
        param_space={"cell": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="nested", storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    return sorted((results[i].metrics or {})["end"] - start for i in range(count))


def main() -> None:
    """Print both, as JSON."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)
    found = {}
    for name, run in (("ours", ours), ("nested", nested)):
        with tempfile.TemporaryDirectory() as folder:
            ends = run(count, Path(folder))
        found[name] = {
            "first": round(ends[0], 2),
            "per cell after the first": round((ends[-1] - ends[0]) / (count - 1), 3),
        }
    ratio = found["nested"]["per cell after the first"] / found["ours"]["per cell after the first"]
    machine = {"cpus": os.cpu_count(), "ray": version("ray"), "python": sys.version.split()[0]}
    print(json.dumps({"cells": count, **found, "ratio": round(ratio, 1), **machine}, indent=1))


if __name__ == "__main__":
    main()
