from dataclasses import replace

import numpy as np
import pytest
import torch

from hpm.data.errors import DataError
from hpm.evaluate.config import EvalData, Linear
from hpm.evaluate.linear import run
from hpm.evaluate.probe import Probe
from hpm.progress import NonFiniteLossError

FROZEN = Linear(epochs=6, warmup_epochs=1.0, base_lr=0.2, batch_size=64, augment=False)
AUGMENTED = replace(FROZEN, epochs=2, augment=True)
UPDATES = 300 // 64
BANK, QUERIES = 3, 2


def probe(config=FROZEN, **changes):
    settings = {"width": 5, "classes": 3, "epoch_steps": 4, "seed": 0, **changes}
    return Probe(config, device=torch.device("cpu"), **settings)


def features(num=32, width=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, width, generator=draws)
    return rows, rows[:, :3].argmax(dim=1)


def test_probe__follows_the_official_recipe_step_by_step():
    """The same updates, with normalisation, gradient and momentum written out by hand."""
    rows, labels = features()
    ours = probe()
    weight, bias = (p.detach().double().clone() for p in ours.head[1].parameters())
    assert not bias.any()
    assert weight.std() < 0.02
    normal = rows.double()
    normal = (normal - normal.mean(0)) / (normal.var(0, unbiased=False) + 1e-6).sqrt()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(3):
        ours.update(rows, labels)
        rate = 0.2 * 64 / 256 * step / 4
        error = (normal @ weight.T + bias).softmax(1) - torch.eye(3, dtype=torch.float64)[labels]
        velocity[0] = 0.9 * velocity[0] + error.T @ normal / len(rows)
        velocity[1] = 0.9 * velocity[1] + error.mean(0)
        weight, bias = weight - rate * velocity[0], bias - rate * velocity[1]
    torch.testing.assert_close(ours.head[1].weight.double(), weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.head[1].bias.double(), bias, rtol=1e-5, atol=1e-7)


def test_probe__an_epochs_loss_is_the_mean_of_its_updates():
    rows, labels = features()
    ours = probe(replace(FROZEN, base_lr=1e-12))
    said = [ours.update(rows, labels) for _ in range(8)]
    assert [sorted(metrics) for metrics in said] == [[], [], [], ["loss"]] * 2
    assert said[3]["loss"] == pytest.approx(said[7]["loss"])
    assert said[3]["loss"] == pytest.approx(np.log(3), abs=0.05)


def test_probe__says_where_its_loss_ceased_to_be_finite():
    rows, labels = features()
    ours = probe()
    for scale in (1, 1, 1, 1, torch.nan, 1, 1):
        ours.update(rows * scale, labels)
    with pytest.raises(NonFiniteLossError, match=r"got nan in epoch 2, at step 8 .*before: 1\."):
        ours.update(rows, labels)


def test_linear__separable_pixels_reach_100(drain, stage, pixels):
    assert drain(stage(run, FROZEN, pixels)).result.metrics == {"top1": 100.0, "top5": 100.0}


@pytest.mark.parametrize(("config", "extracted"), [(FROZEN, BANK + QUERIES), (AUGMENTED, QUERIES)])
def test_linear__counts_extraction_and_updates(drain, stage, encoder, config, extracted):
    done = drain(stage(run, config, encoder))
    total = extracted + config.epochs * UPDATES
    assert [progress.step for progress in done.steps] == list(range(1, total + 1))
    assert {progress.total for progress in done.steps} == {total}
    told = [progress.step for progress in done.steps if progress.metrics]
    assert told == [extracted + (epoch + 1) * UPDATES for epoch in range(config.epochs)]


def test_linear__validates_on_every_image(drain, stage, encoder, tmp_path):
    result = drain(stage(run, FROZEN, encoder)).result
    result.export(tmp_path)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as kept:
        guesses, labels = kept["guesses"], kept["labels"]
    assert labels.tolist() == sorted(index % 6 for index in range(142))
    assert 100 * np.mean(guesses[:, 0] == labels) == pytest.approx(result.metrics["top1"])
    hits = (guesses == labels[:, None]).any(axis=1)
    assert 100 * np.mean(hits) == pytest.approx(result.metrics["top5"])
    assert result.metrics["top1"] <= result.metrics["top5"]


@pytest.mark.parametrize(
    ("config", "step"),
    [(FROZEN, 2), (FROZEN, 4), (FROZEN, 5), (FROZEN, 11), (FROZEN, 13), (AUGMENTED, 5)],
)
def test_linear__resumes_bit_identically(drain, stage, encoder, tmp_path, config, step):
    (tmp_path / "at").mkdir()
    whole = drain(stage(run, config, encoder), save_at=step, folder=tmp_path / "at")
    rest = drain(stage(run, config, encoder, resume=tmp_path / "at"))
    assert rest.steps[0].step == step + 1
    tail = [progress.metrics for progress in whole.steps[step:]]
    assert [progress.metrics for progress in rest.steps] == tail
    assert rest.result.metrics == whole.result.metrics
    assert rest.traces == whole.traces[step:]
    for name, done in (("whole", whole), ("rest", rest)):
        (tmp_path / name).mkdir()
        done.steps[-1].save(tmp_path / name)
    first, second = (
        torch.load(tmp_path / name / "state.pt", weights_only=True)["probe"]
        for name in ("whole", "rest")
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("config", "extracted"), [(FROZEN, BANK + QUERIES), (AUGMENTED, QUERIES)])
def test_linear__traces_features_and_then_updates(drain, stage, encoder, config, extracted):
    one, other = (drain(stage(run, config, encoder, seed=seed)).traces for seed in (0, 1))
    names = [set(trace) for trace in one]
    assert names == [{"state"}] * extracted + [{"weights", "optimizer", "samples"}] * (
        len(one) - extracted
    )
    assert one[:extracted] == other[:extracted]
    for mine, theirs in zip(one[extracted:], other[extracted:], strict=True):
        assert {name for name in mine if mine[name] == theirs[name]} == set()
    everything = [value for trace in one for value in trace.values()]
    assert len(set(everything)) == len(everything)


def test_linear__the_seed_moves_weights_and_order(drain, stage, encoder):
    losses = [
        drain(stage(run, FROZEN, encoder, seed=seed)).steps[-1].metrics["loss"]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_linear__official_crops_unless_the_study_names_data(drain, stage, encoder, settings):
    ours, same, wide = (
        drain(stage(run, replace(AUGMENTED, data=data), encoder)).steps[-1].metrics["loss"]
        for data in (
            None,
            EvalData(name=settings.data.name),
            EvalData(name=settings.data.name, min_crop=0.2),
        )
    )
    assert ours == same != wide


@pytest.mark.parametrize(("config", "before"), [(FROZEN, 1), (FROZEN, 7), (AUGMENTED, 3)])
def test_linear__stops_when_told(drain, stage, encoder, config, before):
    answers = iter([False] * before + [True])
    done = drain(stage(run, config, encoder, should_stop=lambda: next(answers)))
    assert len(done.steps) == before
    assert done.result is None


def test_linear__refuses_a_batch_larger_than_the_split(stage, encoder):
    with pytest.raises(DataError, match=r"batch_size=512 for 300 images"):
        next(stage(run, replace(FROZEN, batch_size=512), encoder))
