import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpm.checkpoint import load_state
from hpm.config import Pretrain
from hpm.distributed import all_gather, all_mean, joined, this_worker
from hpm.pretrain import run
from hpm.progress import Place, Progress

# What both ranks do; rank 1 reads it from its command line, rank 0 is the test's own process.
_RANK_1 = """
import pickle, sys, torch
from hpm.distributed import all_gather, all_mean, joined
from hpm.pretrain import run

config, place = pickle.load(sys.stdin.buffer)
with joined() as worker:
    assert (worker.rank, worker.world) == (1, 2)
    all_gather(torch.tensor([[7.0]]))
    all_mean(torch.tensor([3.0]))
    for _ in run(config, seed=0, place=place, inputs=None, resume=None, should_stop=bool):
        pass
"""


def _train(config: Pretrain, place: Place, folder: Path) -> list[Progress]:
    steps = []
    for progress in run(
        config, seed=0, place=place, inputs=None, resume=None, should_stop=lambda: False
    ):
        steps.append(progress)
        if progress.step == progress.total:
            folder.mkdir()
            progress.save(folder)
    return steps


def _environment(rank: int, port: int) -> dict[str, str]:
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": 2}
    return {name: str(value) for name, value in names.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_alone__is_the_identity() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    with joined() as worker:
        assert (worker.rank, worker.world) == (0, 1)
        assert all_mean(rows) is rows
        assert all_gather(rows) is rows


def test_two_ranks__equal_one_process(
    tiny: Pretrain,
    tiny_place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = replace(tiny, optim=replace(tiny.optim, accumulate=2))
    alone = _train(tiny, tiny_place, tmp_path / "alone")

    port = _free_port()
    place = SimpleNamespace(data=tiny_place.data, threads=1, loaders=0)
    with subprocess.Popen(
        [sys.executable, "-c", _RANK_1],
        stdin=subprocess.PIPE,
        env=os.environ | _environment(1, port),
    ) as other:
        assert other.stdin is not None
        other.stdin.write(pickle.dumps((tiny, place)))
        other.stdin.close()
        try:
            for name, value in _environment(0, port).items():
                monkeypatch.setenv(name, value)
            with joined() as worker:
                assert (worker.rank, worker.world) == (0, 2)
                assert all_gather(torch.tensor([[5.0], [6.0]])).tolist() == [[5.0], [6.0], [7.0]]
                assert all_mean(torch.tensor([1.0])).tolist() == [2.0]
                with joined() as again:
                    assert again == worker
                together = _train(tiny, tiny_place, tmp_path / "together")
            assert other.wait(60) == 0
        finally:
            other.kill()
    assert this_worker().world == 1

    # The first step's loss says that samples and masks are the same, the later ones the rest.
    for one, two in zip(alone, together, strict=True):
        assert two.metrics == pytest.approx(dict(one.metrics), rel=1e-3)
    assert together[0].metrics["loss"] == pytest.approx(alone[0].metrics["loss"], rel=1e-6)
    states = [load_state(tmp_path / name, torch.device("cpu")) for name in ("alone", "together")]
    for role in ("student", "teacher"):
        for name, value in states[0][role].items():
            torch.testing.assert_close(states[1][role][name], value, rtol=1e-2, atol=1e-4)
