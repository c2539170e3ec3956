from dataclasses import replace

import pytest

from hpm.config import Mask, Optim, Pretrain
from hpm.rules import ConfigError
from hpm.schedules import (
    at_step,
    ema_momentum,
    learning_rate,
    moved,
    num_hard,
    peak_learning_rate,
)


@pytest.mark.parametrize(
    ("epoch", "count"), [(0, 0), (1, 0), (2, 1), (49, 18), (99, 36), (149, 55), (199, 73)]
)
def test_num_hard__is_the_official_count_at_200_epochs(epoch: int, count: int) -> None:
    assert num_hard(147, moved(epoch, Mask(), (0.0, 0.5), parts=200)) == count


def test_num_hard__begins_at_epoch_10_of_800() -> None:
    counts = [num_hard(147, moved(e, Mask(), (0.0, 0.5), parts=800)) for e in range(800)]
    assert counts.index(1) == 10
    assert [counts[e] for e in (199, 399, 599, 799)] == [18, 36, 55, 73]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step"])
def test_moved__covers_constant_and_falling_and_ends_at_the_last(schedule: str) -> None:
    mask = Mask(schedule=schedule)
    assert {moved(e, mask, (0.3, 0.3), parts=7) for e in range(7)} == {0.3}
    falling = [moved(e, mask, (0.5, 0.1), parts=7) for e in range(7)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == 0.1
    assert all(0.1 <= value <= 0.5 for value in falling)


def test_moved__by_cosine_is_slow_at_both_ends_and_linear_in_the_middle() -> None:
    line, curve = (
        [moved(e, Mask(schedule=schedule), (0.0, 1.0), parts=100) for e in range(100)]
        for schedule in ("linear", "cosine")
    )
    assert curve[9] < line[9]
    assert curve[49] == pytest.approx(line[49])
    assert curve[89] > line[89]


def test_moved__by_a_step_jumps_once_and_where_it_is_told() -> None:
    values = [moved(e, Mask(schedule="step", step_at=0.3), (0.0, 0.5), parts=10) for e in range(10)]
    assert values == [0.0] * 3 + [0.5] * 7


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_mask__takes_the_time_of_a_step_for_a_step_alone(schedule: str) -> None:
    with pytest.raises(ConfigError, match=f"step_at must be left out where schedule is {schedule}"):
        Mask(schedule=schedule, step_at=0.3)


def test_learning_rate__warms_up_and_ends_at_0() -> None:
    def at(epoch: float) -> float:
        return learning_rate(epoch, peak=1.2e-3, warmup_epochs=40, epochs=200)

    assert at(0) == 0.0
    assert at(20) == pytest.approx(6e-4)
    assert at(40) == 1.2e-3
    assert at(120) == pytest.approx(6e-4)
    assert at(200) == 0.0
    assert at(199.9) > 0.0


def test_learning_rate__may_warm_up_to_the_very_end() -> None:
    assert learning_rate(5, peak=1.0, warmup_epochs=5, epochs=5) == 0.0
    assert learning_rate(0, peak=1.0, warmup_epochs=0, epochs=5) == 1.0


def test_peak_learning_rate__follows_the_global_batch() -> None:
    assert peak_learning_rate(Optim()) == pytest.approx(1.2e-3)


def test_ema_momentum__ramps_and_then_stays() -> None:
    def at(epoch: int) -> float:
        return ema_momentum(epoch, start=0.999, end=0.9999, ramp_epochs=100)

    assert at(0) == 0.999
    assert at(50) == pytest.approx(0.99945)
    assert at(100) == at(700) == 0.9999
    assert ema_momentum(0, start=0.9, end=0.99, ramp_epochs=0) == 0.99


def test_at_step__moves_the_learning_rate_by_step_and_the_rest_by_epoch() -> None:
    config = Pretrain()
    first, second = (at_step(config, 10 * 120 + i, epoch_steps=10) for i in (0, 9))
    assert second.learning_rate < first.learning_rate
    assert first[1:] == second[1:]
    assert first.num_hard == 44
    assert first.momentum == 0.9999


def test_at_step__has_no_hard_patches_where_the_share_is_0() -> None:
    config = replace(Pretrain(), mask=Mask(hard_share=0.0))
    assert {at_step(config, s, epoch_steps=1).num_hard for s in range(200)} == {0}


def test_at_step__can_move_the_hard_share_with_every_step() -> None:
    config = replace(Pretrain(), epochs=50, mask=Mask(schedule_by="step"))
    shares = [at_step(config, step, epoch_steps=4).hard_share for step in range(200)]
    assert shares == [moved(step, Mask(), (0.0, 0.5), parts=200) for step in range(200)]
    assert len(set(shares)) == 200


def test_at_step__can_move_the_mask_ratio() -> None:
    config = replace(Pretrain(), mask=Mask(ratio=(0.5, 0.75), hard_share=(0.0, 1.0)))
    counts = [at_step(config, step, epoch_steps=1) for step in range(200)]
    assert [counts[0].num_masked, counts[-1].num_masked] == [99, 147]
    assert counts[-1].num_hard == 147
    assert all(count.num_hard <= count.num_masked for count in counts)


def test_at_step__counts_squares_of_patches() -> None:
    config = replace(Pretrain(), mask=Mask(ratio=0.6, unit=2, hard_share=0.0))
    assert at_step(config, 0, epoch_steps=1).num_masked == 49 - 19
