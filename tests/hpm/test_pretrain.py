from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hpm.checkpoint import load_state
from hpm.config import Mask, Optim, Predictor, Pretrain, Target
from hpm.distributed import this_worker
from hpm.pretrain import run
from hpm.progress import NonFiniteLossError, Place, Progress, Result
from hpm.weights import load_encoder

CPU = torch.device("cpu")
_OPTIM = Optim(base_lr=0.03, batch_size=8, warmup_epochs=0)
_VIT = {"teacher": "vit_tiny_patch16_224", "layer": 1}


def _never() -> bool:
    return False


def _run(
    config: Pretrain,
    place: Place,
    folder: Path,
    *,
    seed: int = 0,
    resume: Path | None = None,
    save_at: int | None = None,
    should_stop: Callable[[], bool] = _never,
) -> tuple[list[Progress], Result | None]:
    """All progress and the result; the state after the last step (or `save_at`) in `folder`."""
    steps: list[Progress] = []
    stage = run(
        config,
        seed=seed,
        place=place,
        inputs=None,
        resume=resume,
        should_stop=should_stop,
    )
    while True:
        try:
            progress = next(stage)
        except StopIteration as end:
            return steps, end.value
        steps.append(progress)
        if progress.step == (save_at or progress.total):
            folder.mkdir()
            progress.save(folder)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


def test_run__counts_steps_and_records_all_of_a_short_run(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    steps, result = _run(tiny, tiny_place, tmp_path / "end")
    assert [progress.step for progress in steps] == list(range(1, 13))
    assert {progress.total for progress in steps} == {12}
    assert set(steps[0].metrics) == {
        "loss",
        "reconstruction_loss",
        "predictor_loss",
        "grad_norm",
        "lr",
        "hard_share",
        "hard_share_taken",
        "mask_overlap",
        "ema_momentum",
    }
    assert steps[0].metrics["lr"] == 0.0
    assert [steps[i].metrics["hard_share"] for i in (0, 4, 11)] == pytest.approx(
        [1 / 6, 1 / 3, 0.5]
    )
    assert result is not None
    assert result.metrics == steps[-1].metrics


def test_run__records_about_200_steps_of_a_long_one(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    mae = replace(tiny, mask=Mask(hard_share=0.0), predictor=Predictor(objective="none"))
    config = replace(mae, epochs=101, optim=replace(tiny.optim, warmup_epochs=10))
    steps, _ = _run(config, tiny_place, tmp_path / "end")
    recorded = [progress.step for progress in steps if progress.metrics]
    assert recorded == list(range(2, 405, 2))


def test_run__learns(tiny: Pretrain, tiny_place: Place, tmp_path: Path) -> None:
    config = replace(tiny, epochs=20)
    steps, _ = _run(config, tiny_place, tmp_path / "end")
    first, last = (
        sum(p.metrics["reconstruction_loss"] for p in part) / 8 for part in (steps[:8], steps[-8:])
    )
    assert last < 0.9 * first


def test_run__twice_with_one_seed_is_bitwise_equal(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    first, _ = _run(tiny, tiny_place, tmp_path / "first")
    torch.manual_seed(5)
    second, _ = _run(tiny, tiny_place, tmp_path / "second")
    assert [p.metrics for p in first] == [p.metrics for p in second]
    assert _equal(load_state(tmp_path / "first", CPU), load_state(tmp_path / "second", CPU))
    other, _ = _run(tiny, tiny_place, tmp_path / "other", seed=1)
    assert other[-1].metrics != first[-1].metrics


@pytest.mark.parametrize(
    ("step", "last_share", "accumulate"), [(1, 0.5, 1), (6, 0.0, 1), (7, 0.5, 2), (12, 0.5, 1)]
)
def test_resume__equals_not_having_stopped(
    tiny: Pretrain,
    tiny_place: Place,
    tmp_path: Path,
    step: int,
    last_share: float,
    accumulate: int,
) -> None:
    mask, optim = Mask(hard_share=(0.0, last_share)), replace(tiny.optim, accumulate=accumulate)
    tiny = replace(tiny, mask=mask, optim=optim)
    whole, result = _run(tiny, tiny_place, tmp_path / "whole")
    _run(tiny, tiny_place, tmp_path / "part", save_at=step)
    rest, resumed = _run(tiny, tiny_place, tmp_path / "rest", resume=tmp_path / "part")
    assert [(p.step, p.metrics) for p in rest] == [(p.step, p.metrics) for p in whole[step:]]
    assert result is not None
    assert resumed is not None
    assert resumed.metrics == result.metrics
    if step < 12:
        assert _equal(load_state(tmp_path / "whole", CPU), load_state(tmp_path / "rest", CPU))


@pytest.mark.parametrize(
    "change",
    [
        {"target": Target(kind="hog", hog_cell=2)},
        {"target": Target(kind="ema")},
        {"target": Target(kind="teacher", **_VIT)},
        {"target": Target(kind="teacher", precompute=True, **_VIT)},
        {"target": Target(kind="tokens", codebook="codes", **_VIT)},
        {"mask": Mask(unit=2, as_tokens=True)},
        {"mask": Mask(rest="block")},
        {"mask": Mask(rest="grid")},
        {"mask": Mask(rest="block", ratio=(0.5, 0.75), schedule_by="step")},
        {"mask": Mask(guide="attention")},
    ],
    ids=[
        "hog",
        "ema",
        "teacher",
        "precompute",
        "tokens",
        "units",
        "block",
        "grid",
        "ratio",
        "attention",
    ],
)
def test_resume__of_every_target_and_mask_equals_not_having_stopped(
    tiny: Pretrain,
    teachers: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draws = torch.Generator().manual_seed(0)
    save_file({"codebook": torch.randn(20, 192, generator=draws)}, tmp_path / "codes")
    place = replace(teachers, data={**teachers.data, "codes": tmp_path / "codes"})
    optim = replace(_OPTIM, batch_size=32, accumulate=2)
    config = replace(tiny, optim=optim, **change)
    whole, result = _run(config, place, tmp_path / "whole")
    _run(config, place, tmp_path / "part", save_at=1)
    rest, resumed = _run(config, place, tmp_path / "rest", resume=tmp_path / "part")
    assert [(p.step, p.metrics) for p in rest] == [(p.step, p.metrics) for p in whole[1:]]
    assert len(rest) == 2
    assert _equal(load_state(tmp_path / "whole", CPU), load_state(tmp_path / "rest", CPU))
    assert result is not None
    assert resumed is not None
    assert resumed.metrics == result.metrics


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume__on_cuda_equals_not_having_stopped(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path, precision: Any
) -> None:
    tiny = replace(tiny, precision=precision)
    _run(tiny, tiny_place, tmp_path / "whole")
    _run(tiny, tiny_place, tmp_path / "part", save_at=7)
    _run(tiny, tiny_place, tmp_path / "rest", resume=tmp_path / "part")
    assert _equal(load_state(tmp_path / "whole", CPU), load_state(tmp_path / "rest", CPU))
    assert this_worker().device.type == "cuda"


def test_run__stops_when_asked(tiny: Pretrain, tiny_place: Place, tmp_path: Path) -> None:
    answers = iter([False, False, True])
    steps, result = _run(
        tiny, tiny_place, tmp_path / "part", should_stop=lambda: next(answers), save_at=2
    )
    assert [progress.step for progress in steps] == [1, 2]
    assert result is None
    assert load_state(tmp_path / "part", CPU)["step"] == 2


def test_accumulation__equals_one_pass(tiny: Pretrain, tiny_place: Place, tmp_path: Path) -> None:
    whole, _ = _run(tiny, tiny_place, tmp_path / "whole")
    parted = replace(tiny, optim=replace(tiny.optim, accumulate=4))
    parts, _ = _run(parted, tiny_place, tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        assert other.metrics == pytest.approx(dict(one.metrics), rel=1e-3)


def test_export__holds_student_and_teacher(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    _, result = _run(tiny, tiny_place, tmp_path / "end")
    assert result is not None
    result.export(tmp_path)
    student, description = load_encoder(tmp_path)
    teacher, _ = load_encoder(tmp_path, role="teacher")
    assert (description.encoder, description.data) == (tiny.encoder, tiny.data)
    assert not student.cls_token.equal(teacher.cls_token)


@pytest.mark.parametrize("objective", ["none", "relative"])
def test_random_masks__need_no_teacher(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path, objective: Any
) -> None:
    config = replace(tiny, mask=Mask(hard_share=0.0), predictor=Predictor(objective=objective))
    steps, result = _run(config, tiny_place, tmp_path / "end")
    state = load_state(tmp_path / "end", CPU)
    assert state["teacher"] is None
    assert any("loss_predictor" in name for name in state["student"]) == (objective != "none")
    assert ("predictor_loss" in steps[0].metrics) == (objective != "none")
    assert "ema_momentum" not in steps[0].metrics
    assert result is not None
    result.export(tmp_path)
    assert not (tmp_path / "teacher.safetensors").exists()


def test_rows__of_one_seed_begin_with_the_same_reconstruction(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    mae = replace(tiny, mask=Mask(hard_share=0.0), predictor=Predictor(objective="none"))
    predicting = replace(tiny, mask=Mask(hard_share=0.0))
    first, second = (
        _run(config, tiny_place, tmp_path / name)[0][0].metrics["reconstruction_loss"]
        for name, config in (("mae", mae), ("predicting", predicting))
    )
    assert first == second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"target": Target(kind="pixels")}, {"target": Target(kind="normalized-pixels")}),
        (
            {"predictor": Predictor(objective="relative")},
            {"predictor": Predictor(objective="absolute")},
        ),
        ({"precision": "float32"}, {"precision": "bfloat16"}),
        ({"mask": Mask(prefer="hard")}, {"mask": Mask(prefer="easy")}),
        ({"mask": Mask(hard_share=(0.0, 0.5))}, {"mask": Mask(hard_share=(0.5, 0.0))}),
        ({"optim": replace(_OPTIM, clip_norm=None)}, {"optim": replace(_OPTIM, clip_norm=1e-3)}),
    ],
    ids=["target", "objective", "precision", "prefer", "hard_share", "clip_norm"],
)
def test_run__knows_each_choice(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    losses = [
        _run(replace(tiny, epochs=2, **choice), tiny_place, tmp_path / str(number))[0][-1].metrics[
            "loss"
        ]
        for number, choice in enumerate((one, other))
    ]
    assert losses[0] != losses[1]


def test_hard_share_taken__is_of_whole_patches(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    """Of 12 hidden ones: the floor of 2.8, 5.6 and 8.4."""
    config = replace(tiny, mask=Mask(hard_share=(0.0, 0.7)))
    steps, _ = _run(config, tiny_place, tmp_path / "end")
    taken = [steps[i].metrics["hard_share_taken"] for i in (0, 4, 11)]
    assert taken == [2 / 12, 5 / 12, 8 / 12]


def test_hard_share__may_fall(tiny: Pretrain, tiny_place: Place, tmp_path: Path) -> None:
    config = replace(tiny, mask=Mask(hard_share=(0.5, 0.0)))
    steps, _ = _run(config, tiny_place, tmp_path / "end")
    shares = [steps[i].metrics["hard_share"] for i in (0, 4, 11)]
    assert shares == pytest.approx([1 / 3, 1 / 6, 0.0])
    assert load_state(tmp_path / "end", CPU)["teacher"] is not None


def test_run__ends_with_the_step_and_last_finite_loss(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    config = replace(tiny, optim=replace(tiny.optim, base_lr=1e30, warmup_epochs=0, clip_norm=None))
    said = r"got nan at step \d+ \(the last finite one was"
    with pytest.raises(NonFiniteLossError, match=said) as caught:
        _run(config, tiny_place, tmp_path / "end")
    assert not caught.value.retry


def test_run__says_when_no_loss_was_finite(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    _run(tiny, tiny_place, tmp_path / "part", save_at=1)
    state = load_state(tmp_path / "part", CPU) | {"metrics": {}}
    state["student"]["encoder.cls_token"].fill_(torch.nan)
    torch.save(state, tmp_path / "part" / "state.pt")
    with pytest.raises(NonFiniteLossError, match=r"got nan at step 2 \(none was recorded\)"):
        _run(tiny, tiny_place, tmp_path / "end", resume=tmp_path / "part")
