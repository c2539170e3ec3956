"""Detection as a stage: training, searching, resuming, and what it says when it cannot run."""

import json
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pycocotools import mask as runs

from hpm.config import Data, Encoder
from hpm.data.errors import DataError
from hpm.evaluate.config import Random
from hpm.evaluate.detect import found as finding
from hpm.evaluate.detect.config import Detect, DetectData, MissingPackageError, missing
from hpm.evaluate.detect.stage import run
from hpm.rules import ConfigError
from hpm.trainer import TRAINER

UPDATES, SEARCHES = 9, 3


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Five validation images, two a batch."""
    monkeypatch.setattr(finding, "BATCH", 2)


@pytest.fixture
def stage(blocks, encoder):
    def start(config, *, inputs=None, resume=None, seed=0, should_stop=lambda: False):
        begin = partial(run, config, seed=seed, place=blocks, inputs=inputs or encoder)
        return begin(resume=resume, should_stop=should_stop)

    return start


def test_detect__counts_updates_and_searches(drain, stage, small):
    done = drain(stage(small))
    assert [progress.step for progress in done.steps] == list(range(1, UPDATES + SEARCHES + 1))
    assert {progress.total for progress in done.steps} == {UPDATES + SEARCHES}
    names = [set(trace) for trace in done.traces]
    assert (
        names
        == [{"weights", "optimizer", "average", "samples", "views"}] * UPDATES
        + [{"state"}] * SEARCHES
    )
    assert set(done.result.metrics) == {"box_ap", "mask_ap", "box_ap50"}
    for progress in done.steps[:UPDATES]:
        parts = {name: value for name, value in progress.metrics.items() if "_loss" in name}
        assert len(parts) == 5
        assert sum(parts.values()) == pytest.approx(progress.metrics["loss"], rel=1e-4)


def test_detect__sees_every_image_once_an_epoch(drain, stage, small, monkeypatch):
    seen = []

    def remember(self, given):
        seen.append(torch.cat([part.indices for part in given]).tolist())
        return {}

    monkeypatch.setattr("hpm.evaluate.supervised.Supervised._trace", remember)
    drain(stage(small))
    for epoch in range(3):
        counts = Counter(i for step in seen[3 * epoch : 3 * epoch + 3] for i in step)
        assert counts == dict.fromkeys(range(12), 1)


@pytest.mark.parametrize("step", [1, 5, UPDATES, UPDATES + 1, UPDATES + SEARCHES])
def test_detect__resumes_bit_identically(drain, stage, small, tmp_path, step):
    config = replace(small, drop_path=0.3)
    (tmp_path / "at").mkdir()
    whole = drain(stage(config), save_at=step, folder=tmp_path / "at")
    rest = drain(stage(config, resume=tmp_path / "at"))
    assert rest.traces == whole.traces[step:]
    tail = [progress.metrics for progress in whole.steps[step:]]
    assert [progress.metrics for progress in rest.steps] == tail
    assert rest.result.metrics == whole.result.metrics
    texts = []
    for name, done in (("whole", whole), ("rest", rest)):
        (tmp_path / name).mkdir()
        done.result.export(tmp_path / name)
        texts.append((tmp_path / name / "detections.json").read_text())
    assert texts[0] == texts[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_detect__is_bit_identical_on_cuda(drain, stage, small, precision):
    config = replace(small, optim=replace(small.optim, precision=precision))
    first, second = (drain(stage(config)) for _ in range(2))
    assert first.traces == second.traces
    assert first.result.metrics == second.result.metrics


def test_detect__the_seed_moves_everything(drain, stage, small):
    one, same, other = (drain(stage(small, seed=seed)).traces for seed in (0, 0, 1))
    assert one == same
    for mine, theirs in zip(one[:UPDATES], other[:UPDATES], strict=True):
        assert {name for name in mine if mine[name] == theirs[name]} == set()


def test_detect__leaves_the_global_generators_alone(drain, stage, small, monkeypatch):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    drain(stage(replace(small, drop_path=0.3)))
    assert torch.random.get_rng_state().equal(before)
    assert seeded == []


@pytest.mark.parametrize("before", [2, UPDATES + 1])
def test_detect__stops_when_told(drain, stage, small, before):
    answers = iter([False] * before + [True])
    done = drain(stage(small, should_stop=lambda: next(answers)))
    assert (len(done.steps), done.result) == (before, None)


def test_detect__learns_to_find_blocks(drain, stage, small, tmp_path):
    recipe = replace(small.optim, epochs=50, base_lr=0.6, decay="cosine", ema=None, accumulate=1)
    done = drain(stage(replace(small, anchors=32, regions=16, channels=16, optim=recipe)))
    losses = [progress.metrics["loss"] for progress in done.steps if progress.metrics]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert done.result.metrics["box_ap50"] > 20
    done.result.export(tmp_path)
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {result["image_id"] for result in results} <= set(range(100, 105))
    assert {result["category_id"] for result in results} <= {3, 7}
    for result in results:
        left, top, width, height = result["bbox"]
        assert 0 <= left < left + width <= 32
        assert 0 <= top < top + height <= 24
        assert 0 < result["score"] <= 1
        assert runs.decode(result["segmentation"]).shape == (24, 32)


def test_detect__keeps_what_it_found_in_cocos_format(drain, stage, small, tmp_path):
    done = drain(stage(small))
    done.result.export(tmp_path)
    results = json.loads((tmp_path / "detections.json").read_text())
    names = {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert all(set(result) == names for result in results)


def test_detect__refuses_pixels(stage, small, pixels):
    with pytest.raises(DataError, match="detect needs an encoder, but the pixels ref"):
        next(stage(small, inputs=pixels))


def test_detect__refuses_the_encoders_set_where_it_says_of_no_objects(small, encoder, place):
    steps = run(
        replace(small, data=None),
        seed=0,
        place=place,
        inputs=encoder,
        resume=None,
        should_stop=lambda: False,
    )
    with pytest.raises(DataError, match="'colours' must say where objects are"):
        next(steps)


def test_detect__refuses_sizes_that_do_not_fit_the_patches(stage, small):
    with pytest.raises(ConfigError, match="image_size must be divisible by 32, four patches"):
        next(stage(replace(small, image_size=48)))


@pytest.mark.parametrize(("patch", "size"), [(14, 112), (2, 32)])
def test_detect__refuses_patches_that_have_no_whole_quarters(patch, size):
    encoder = Encoder(patch_size=patch, width=16, depth=1, heads=2)
    with pytest.raises(ConfigError, match=f"must be divisible by 4, .* got {patch}") as caught:
        Detect(image_size=size).require(encoder)
    assert [path for path, _ in caught.value.problems] == ["encoder.patch_size"]


def test_detect__refuses_a_batch_larger_than_the_split(stage, small):
    with pytest.raises(DataError, match="batch_size=16 for 12 images"):
        next(stage(replace(small, optim=replace(small.optim, batch_size=16))))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"min_scale": 0.0}, "min_scale"),
        ({"min_scale": 3.0}, "min_scale"),
        ({"anchors": 1}, "anchors"),
        ({"regions": 3}, "regions"),
        ({"convolutions": -1}, "convolutions"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"channels": 0}, "channels"),
    ],
)
def test_detect__settings_have_their_rules(changes, path):
    with pytest.raises(ConfigError) as caught:
        Detect(**changes)
    assert [problem[0] for problem in caught.value.problems] == [path]


def test_detect__has_vitdets_recipe():
    optim = Detect().optim
    assert (optim.base_lr * optim.batch_size / 256, optim.weight_decay) == (1e-4, 0.1)
    iterations = 117_266 // 64
    assert round(optim.warmup_epochs * iterations) == pytest.approx(250, abs=1)
    assert (optim.epochs, optim.decay, optim.layer_decay) == (100, "steps", 0.7)


def test_detect__an_absent_package_is_named(monkeypatch):
    assert missing() is None
    place = SimpleNamespace(data={}, threads=1, loaders=0, download=False)
    parent = Random(data=Data(name="fashion-scenes", image_size=32))
    assert TRAINER.fits(Detect(), parent, place) is None
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    sentence = missing()
    assert sentence is not None
    assert "pycocotools" in sentence
    assert "pip install 'hpm-ablation[detection]'" in sentence
    assert TRAINER.fits(Detect(), parent, place) == sentence
    with pytest.raises(MissingPackageError, match="which is not installed here"):
        TRAINER.stages()["detect"].load()
    assert not MissingPackageError.retry


def test_detect__wants_equal_shares():
    config = Detect(data=DetectData(name="blocks"))
    assert TRAINER.check(config, 4) is None
    problem = TRAINER.check(config, 3)
    assert problem is not None
    assert "divisible by 3 workers times optim.accumulate=1, got 64" in problem
