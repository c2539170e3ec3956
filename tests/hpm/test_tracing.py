from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpm.checkpoint import load_state, save_state
from hpm.config import Mask, Pretrain
from hpm.pretrain import run
from hpm.progress import Place
from hpm.tracing import digest

Traces = list[Mapping[str, str]]


def _traces(
    config: Pretrain,
    place: Place,
    *,
    seed: int = 0,
    resume: Path | None = None,
    save_in: Path | None = None,
) -> Traces:
    """The trace of every step; the state after it in a folder of its number in `save_in`."""
    traces = []
    for progress in run(
        config, seed=seed, place=place, inputs=None, resume=resume, should_stop=lambda: False
    ):
        traces.append(progress.trace())
        if save_in is not None:
            (save_in / str(progress.step)).mkdir()
            progress.save(save_in / str(progress.step))
    return traces


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trace__of_a_resumed_run_is_that_of_one_that_went_on(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path, accumulate: int
) -> None:
    tiny = replace(tiny, optim=replace(tiny.optim, accumulate=accumulate))
    whole = _traces(tiny, tiny_place, save_in=tmp_path)
    for step in (1, 6, 11):
        rest = _traces(tiny, tiny_place, resume=tmp_path / str(step))
        assert rest == whole[step:]


def test_trace__shows_what_a_resume_lost(tiny: Pretrain, tiny_place: Place, tmp_path: Path) -> None:
    whole = _traces(tiny, tiny_place, save_in=tmp_path)[6:]
    state = load_state(tmp_path / "6", torch.device("cpu"))
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"].zero_()
    (tmp_path / "lossy").mkdir()
    save_state(tmp_path / "lossy", state)
    rest = _traces(tiny, tiny_place, resume=tmp_path / "lossy")
    differing = {name for name in rest[0] if rest[0][name] != whole[0][name]}
    assert differing == {"weights", "teacher", "optimizer"}


def test_trace__names_every_kind_of_state(tiny: Pretrain, tiny_place: Place) -> None:
    one, other = _traces(tiny, tiny_place), _traces(tiny, tiny_place, seed=1)
    assert set(one[0]) == {"weights", "teacher", "optimizer", "samples", "masks"}
    assert all(len(value) == 16 for value in one[0].values())
    for mine, theirs in zip(one, other, strict=True):
        assert {name for name in mine if mine[name] == theirs[name]} == set()
    # The first step's learning rate is 0: it leaves the weights, and so the teacher, alone.
    for name in one[0]:
        assert len({trace[name] for trace in one[1:]}) == len(one) - 1, name


def test_trace__knows_the_masks_by_what_the_teacher_chose(
    tiny: Pretrain, tiny_place: Place
) -> None:
    hard, easy = (
        _traces(replace(tiny, mask=Mask(hard_share=0.5, prefer=prefer)), tiny_place)[0]
        for prefer in ("hard", "easy")
    )
    assert hard["samples"] == easy["samples"]
    assert hard["masks"] != easy["masks"]


def test_trace__without_a_teacher_has_none(tiny: Pretrain, tiny_place: Place) -> None:
    config = replace(tiny, mask=Mask(hard_share=0.0), epochs=1)
    assert "teacher" not in _traces(config, tiny_place)[0]


def test_digest__needs_no_order_of_names_and_no_layout() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    assert digest({"a": rows, "b": 1}) == digest({"b": 1, "a": rows.clone()})
    assert digest(rows.T) == digest(rows.T.contiguous())


def test_digest__sees_each_bit_shape_type_and_name() -> None:
    rows = torch.zeros(2, 3)
    states = [
        rows,
        -rows,
        rows.T,
        rows.flatten(),
        rows.to(torch.bfloat16),
        rows.to(torch.int32),
        rows.bool(),
        torch.zeros(()),
        torch.zeros(0),
        {"a": rows},
        {"b": rows},
        [rows],
        [rows, rows],
        [rows, None],
        {"a": [rows]},
        0.0,
        0,
    ]
    assert len({digest(state) for state in states}) == len(states)
