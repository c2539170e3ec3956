"""Three processes: rank 0 is the test's own, the others run this file as a script."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from hpm.checkpoint import load_state
from hpm.config import Pretrain
from hpm.distributed import Worker, all_gather, all_mean, this_worker
from hpm.pretrain import run
from hpm.progress import Place, Progress

CPU = torch.device("cpu")


@contextmanager
def _joined(rank: int, world: int, folder: Path) -> Iterator[Worker]:
    meeting = f"file://{folder}/meeting-of-{world}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    try:
        yield this_worker()
    finally:
        dist.destroy_process_group()


def _train(
    config: Pretrain,
    place: Place,
    folder: Path,
    *,
    save_at: int | None = None,
    resume: Path | None = None,
) -> list[Progress]:
    """All progress; the state after the last step (or `save_at`) in `folder`."""
    steps = []
    for progress in run(
        config, seed=0, place=place, inputs=None, resume=resume, should_stop=lambda: False
    ):
        steps.append(progress)
        if progress.step == (save_at or progress.total):
            folder.mkdir()
            progress.save(folder)
    return steps


@dataclass(frozen=True, slots=True)
class _Work:
    """What a group of three trains, what one of two does, and what that makes of one's half."""

    three: list[Progress]
    two: list[Progress]
    grown: list[Progress]


def _work(rank: int, folder: Path, config: Pretrain, place: Place) -> _Work | None:
    """What every rank does: three interrupt and resume a run, then two of them train."""
    of_three = replace(config, optim=replace(config.optim, batch_size=6))
    whole, part, rest = (folder / f"{name}-{rank}" for name in ("whole", "part", "rest"))
    with _joined(rank, 3, folder) as worker:
        assert worker == (rank, 3, CPU)
        # Ranks may differ in their number of rows.
        rows = all_gather(torch.full((1 + (rank == 1), 1), float(rank)))
        assert rows.tolist() == [[0.0], [1.0], [1.0], [2.0]]
        assert all_mean(torch.tensor([3.0 * rank])).tolist() == [3.0]
        three = _train(of_three, place, whole)
        _train(of_three, place, part, save_at=5)
        _train(of_three, place, rest, resume=part)
    if rank == 2:
        return None
    with _joined(rank, 2, folder):
        two = _train(config, place, folder / f"two-{rank}")
        grown = _train(config, place, folder / f"grown-{rank}", resume=folder / "half")
    return _Work(three, two, grown)


def _assert_same_work(some: list[Progress], others: list[Progress]) -> None:
    """The first step's loss says that samples and masks are the same, the later ones the rest."""
    for one, other in zip(some, others, strict=True):
        assert one.step == other.step
        torch.testing.assert_close(dict(other.metrics), dict(one.metrics), rtol=1e-3, atol=0)
    first, second = some[0].metrics["loss"], others[0].metrics["loss"]
    torch.testing.assert_close(second, first, rtol=1e-6, atol=0)


def test_alone__is_the_identity() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    assert this_worker()[:2] == (0, 1)
    assert all_mean(rows) is rows
    assert all_gather(rows) is rows


def test_ranks__resume_bit_identically_and_equal_one_process(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    """So do those that go on from a state of fewer ranks, or of more."""
    tiny = replace(tiny, optim=replace(tiny.optim, accumulate=2))
    alone = _train(tiny, tiny_place, tmp_path / "alone")
    _train(tiny, tiny_place, tmp_path / "half", save_at=5)
    place = SimpleNamespace(data=tiny_place.data, threads=1, loaders=0, download=False)
    given = pickle.dumps((tmp_path, tiny, place))
    others = [
        subprocess.Popen([sys.executable, __file__, str(rank)], stdin=subprocess.PIPE)
        for rank in (1, 2)
    ]
    try:
        for other in others:
            assert other.stdin is not None
            with other.stdin as pipe:
                pipe.write(given)
        work = _work(0, tmp_path, tiny, place)
        assert [other.wait(60) for other in others] == [0, 0]
    finally:
        for other in others:
            other.kill()
            other.wait()

    names = [f"{name}-{rank}" for name in ("whole", "rest") for rank in range(3)]
    states = [load_state(tmp_path / name, CPU) for name in names]
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)

    assert work is not None
    _assert_same_work(alone, work.two)
    _assert_same_work(alone[5:], work.grown)
    of_three = replace(tiny, optim=replace(tiny.optim, batch_size=6))
    shrunk = _train(of_three, tiny_place, tmp_path / "shrunk", resume=tmp_path / "part-0")
    _assert_same_work(work.three[5:], shrunk)
    one, two = (load_state(tmp_path / name, CPU) for name in ("alone", "two-0"))
    for role in ("student", "teacher"):
        for name, value in one[role].items():
            # A key's bias moves no attention: its gradient is rounding, which Adam makes large.
            if not name.endswith("qkv.bias"):
                torch.testing.assert_close(two[role][name], value, rtol=1e-2, atol=1e-4)


if __name__ == "__main__":
    _work(int(sys.argv[1]), *pickle.load(sys.stdin.buffer))
