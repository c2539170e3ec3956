"""Fine-tuning as a stage. Two processes run this file as a script, and are compared with one."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed

from hpm.data.errors import DataError
from hpm.evaluate.config import EvalData
from hpm.evaluate.finetune import run
from hpm.evaluate.finetune_config import Augment, Finetune
from hpm.evaluate.recipe import Recipe
from hpm.evaluate.references import run_random
from hpm.progress import NonFiniteLossError
from hpm.rules import ConfigError
from hpm.weights import export_encoder, load_encoder

RECIPE = Recipe(
    epochs=1,
    warmup_epochs=0.2,
    base_lr=0.02,
    batch_size=64,
    accumulate=2,
    ema=0.5,
    precision="float32",
)
OFFICIAL = Finetune(drop_path=0.3, optim=RECIPE)
"""All that is drawn is on."""
PLAIN = Finetune(
    augment=Augment(rand_magnitude=0, erasing=0.0, mixup=0.0, cutmix=0.0), optim=RECIPE
)
UPDATES, VALIDATION = 300 // 64, 2
MARKS = (2, UPDATES + 1)
"""Steps that two workers save after: one in training, one in validation."""


@pytest.fixture(scope="module")
def deep(settings, place, tmp_path_factory):
    """The export of an encoder with two blocks, so that one has a drop path."""
    folder = tmp_path_factory.mktemp("deep")
    config = replace(settings, encoder=replace(settings.encoder, depth=2))
    given = {"seed": 0, "place": place, "inputs": None, "resume": None}
    stage = run_random(config, should_stop=lambda: False, **given)
    next(stage)
    with pytest.raises(StopIteration) as end:
        next(stage)
    end.value.value.export(folder)
    return folder


def test_finetune__learns_colours(drain, stage, encoder):
    config = replace(
        PLAIN, optim=replace(RECIPE, epochs=8, base_lr=0.05, warmup_epochs=1, ema=None)
    )
    done = drain(stage(run, config, encoder))
    assert done.result.metrics["top1"] > 90
    assert done.result.metrics["top1"] <= done.result.metrics["top5"] <= 100
    losses = [progress.metrics["loss"] for progress in done.steps if progress.metrics]
    assert losses[-1] < losses[0]


def test_finetune__starts_from_a_head_that_knows_nothing(drain, stage, encoder):
    done = drain(stage(run, PLAIN, encoder))
    assert done.steps[0].metrics["loss"] == pytest.approx(math.log(6), abs=1e-3)
    assert done.steps[0].metrics["lr"] == 0.0


def test_finetune__counts_updates_and_validation(drain, stage, deep):
    config = replace(OFFICIAL, optim=replace(RECIPE, epochs=2))
    done = drain(stage(run, config, deep))
    total = 2 * UPDATES + VALIDATION
    assert [progress.step for progress in done.steps] == list(range(1, total + 1))
    assert {progress.total for progress in done.steps} == {total}
    told = {progress.step: set(progress.metrics) for progress in done.steps if progress.metrics}
    assert told == {step + 1: {"loss", "grad_norm", "lr"} for step in range(2 * UPDATES)}


def test_finetune__predictions_agree_with_the_metrics(drain, stage, deep, tmp_path):
    result = drain(stage(run, OFFICIAL, deep)).result
    result.export(tmp_path)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as kept:
        guesses, labels = kept["guesses"], kept["labels"]
    assert labels.tolist() == sorted(index % 6 for index in range(142))
    assert 100 * np.mean(guesses[:, 0] == labels) == pytest.approx(result.metrics["top1"])
    hits = (guesses == labels[:, None]).any(axis=1)
    assert 100 * np.mean(hits) == pytest.approx(result.metrics["top5"])


@pytest.mark.parametrize("step", [1, UPDATES, UPDATES + 1, UPDATES + VALIDATION])
def test_finetune__resumes_bit_identically(drain, stage, deep, tmp_path, step):
    whole = drain(stage(run, OFFICIAL, deep), save_at=step, folder=tmp_path)
    rest = drain(stage(run, OFFICIAL, deep, resume=tmp_path))
    assert [progress.step for progress in rest.steps] == [p.step for p in whole.steps[step:]]
    assert [progress.metrics for progress in rest.steps] == [
        progress.metrics for progress in whole.steps[step:]
    ]
    assert rest.traces == whole.traces[step:]
    assert rest.result.metrics == whole.result.metrics


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_finetune__is_bit_identical_on_cuda(drain, stage, deep, precision):
    config = replace(OFFICIAL, optim=replace(RECIPE, precision=precision))
    first, second = (drain(stage(run, config, deep)) for _ in range(2))
    assert first.traces == second.traces
    assert first.result.metrics == second.result.metrics


def test_finetune__traces_all_that_moves(drain, stage, deep):
    one, other = (drain(stage(run, OFFICIAL, deep, seed=seed)).traces for seed in (0, 1))
    updating = {"weights", "average", "optimizer", "samples", "views"}
    assert [set(trace) for trace in one] == [updating] * UPDATES + [{"state"}] * VALIDATION
    values = [value for trace in one + other for value in trace.values()]
    # The first update has a learning rate of 0, so the weights and their average are still one.
    assert one[0]["weights"] == one[0]["average"]
    assert len(set(values)) == len(values) - 2


def test_finetune__loader_processes_change_nothing(drain, stage, deep, place):
    given = {"seed": 0, "inputs": deep, "resume": None, "should_stop": lambda: False}
    alone = drain(stage(run, OFFICIAL, deep))
    helped = drain(run(OFFICIAL, place=replace(place, loaders=1), **given))
    assert helped.traces == alone.traces


def test_finetune__draws_nothing_from_global_generators(drain, stage, deep):
    traces = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        traces.append(drain(stage(run, OFFICIAL, deep)).traces)
    assert traces[0] == traces[1]


def test_finetune__each_setting_counts(drain, stage, deep):
    def first_weights(config, seed=0):
        steps = stage(run, config, deep, seed=seed)
        next(steps)
        return next(steps).trace()["weights"]

    augment = OFFICIAL.augment
    variants = [
        OFFICIAL,
        replace(OFFICIAL, drop_path=0.0),
        replace(OFFICIAL, image_size=24),
        replace(OFFICIAL, data=EvalData(name="colours", min_crop=0.5)),
        replace(OFFICIAL, data=EvalData(name="colours", flip=False)),
        replace(OFFICIAL, optim=replace(RECIPE, precision="bfloat16")),
        *(
            replace(OFFICIAL, augment=replace(augment, **{name: 0}))
            for name in ("rand_magnitude", "erasing", "mixup", "cutmix", "smoothing")
        ),
    ]
    found = [first_weights(config) for config in variants]
    assert len(set(found)) == len(variants)
    named = replace(OFFICIAL, data=EvalData(name="colours"))
    assert first_weights(named) == found[0], "the official crops, unless the study says otherwise"


def test_finetune__starts_from_whom_it_is_told(drain, stage, deep, tmp_path):
    network, description = load_encoder(deep)
    student = network.state_dict()
    teacher = {name: value + 0.1 for name, value in student.items()}
    export_encoder(tmp_path, description, student=student, teacher=teacher)
    first, same, other = (
        drain(stage(run, config, folder)).traces[0]["weights"]
        for config, folder in (
            (PLAIN, deep),
            (PLAIN, tmp_path),
            (replace(PLAIN, role="teacher"), tmp_path),
        )
    )
    assert first == same != other


def test_finetune__stops_when_told(drain, stage, deep):
    for before in (2, UPDATES + 1):
        answers = iter([False] * before + [True])
        done = drain(stage(run, PLAIN, deep, should_stop=lambda answers=answers: next(answers)))
        assert len(done.steps) == before
        assert done.result is None


def test_finetune__says_that_pixels_are_no_encoder(stage, pixels):
    with pytest.raises(DataError, match="Leave pixels out of the study's references") as caught:
        next(stage(run, PLAIN, pixels))
    assert not caught.value.retry


def test_finetune__says_that_there_is_no_teacher(stage, deep):
    with pytest.raises(DataError, match=r"finetune with role teacher needs .* Set role: student"):
        next(stage(run, replace(PLAIN, role="teacher"), deep))


def test_finetune__says_what_size_an_image_must_have(stage, deep):
    said = re.escape("image_size must be divisible by the encoder's patch_size=8, got 20.")
    with pytest.raises(ConfigError, match=said):
        next(stage(run, replace(PLAIN, image_size=20), deep))


def test_finetune__refuses_a_batch_larger_than_the_split(stage, deep):
    config = replace(PLAIN, optim=replace(RECIPE, batch_size=512))
    with pytest.raises(DataError, match="batch_size=512 for 300 images"):
        next(stage(run, config, deep))


def test_finetune__says_that_its_loss_is_not_finite(drain, stage, deep, tmp_path):
    network, description = load_encoder(deep)
    broken = {name: value * torch.nan for name, value in network.state_dict().items()}
    export_encoder(tmp_path, description, student=broken)
    with pytest.raises(NonFiniteLossError, match=r"at step 1 .*Lower optim\.base_lr"):
        drain(stage(run, PLAIN, tmp_path))


def test_settings__name_all_that_is_wrong():
    with pytest.raises(ConfigError) as caught:
        Augment(rand_magnitude=11, erasing=1.5, mixup=-1, cutmix=-0.1, smoothing=1.0)
    assert [path for path, _ in caught.value.problems] == [
        "rand_magnitude",
        "erasing",
        "mixup",
        "cutmix",
        "smoothing",
    ]
    with pytest.raises(ConfigError) as caught:
        Finetune(image_size=0, drop_path=1.0)
    assert [path for path, _ in caught.value.problems] == ["image_size", "drop_path"]


def test_settings__official_ones_are_the_defaults():
    config, optim = Finetune(), Recipe()
    assert (optim.base_lr * optim.batch_size / 256, optim.layer_decay) == (7.5e-4, 0.8)
    assert (optim.epochs, optim.warmup_epochs, optim.weight_decay) == (100, 5, 0.05)
    assert (optim.clip_norm, optim.ema, optim.min_lr) == (None, None, 1e-6)
    assert (config.drop_path, config.role, config.augment.mixes) == (0.1, "student", True)
    assert config.augment == Augment(
        rand_magnitude=9, erasing=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1
    )


def finish(stage, folder, marks=()):
    """Run to the end; keep losses, metrics, guesses, the last state and those at the marks."""
    folder.mkdir()
    losses = []
    while True:
        try:
            progress = next(stage)
        except StopIteration as end:
            kept = {"losses": losses, "metrics": end.value.metrics}
            (folder / "kept.json").write_text(json.dumps(kept))
            end.value.export(folder)
            return
        losses += [progress.metrics["loss"]] if progress.metrics else []
        if progress.step in marks:
            (folder / f"{progress.step}").mkdir()
            progress.save(folder / f"{progress.step}")
        if progress.step == progress.total:
            progress.save(folder)


def work(rank, export, root, target):
    distributed.init_process_group(
        "gloo", init_method=f"file://{target}/meeting", rank=rank, world_size=2
    )
    place = SimpleNamespace(data={"colours": root}, threads=1, loaders=0, download=False)
    given = {"seed": 0, "place": place, "inputs": export, "should_stop": lambda: False}
    finish(run(OFFICIAL, resume=None, **given), target / f"whole-{rank}", MARKS)
    distributed.barrier()
    for step in MARKS:
        # As the platform does: all go on from what the lead saved.
        saved = target / "whole-0" / f"{step}"
        finish(run(OFFICIAL, resume=saved, **given), target / f"rest-{step}-{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(deep, place, tmp_path_factory):
    """The folder of all that two workers leave, by name and rank."""
    folder = tmp_path_factory.mktemp("shared")
    given = [str(path) for path in (deep, place.data["colours"], folder)]
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), *given]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    return folder


def kept(folder):
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        labels = arrays["labels"].tolist()
    return {**json.loads((folder / "kept.json").read_text()), "labels": labels}


def state(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def test_workers__learn_what_one_does(shared, stage, deep, tmp_path):
    finish(stage(run, OFFICIAL, deep), tmp_path / "alone")
    alone, first, second = (
        kept(folder) for folder in (tmp_path / "alone", shared / "whole-0", shared / "whole-1")
    )
    assert first == second
    assert first["labels"] == alone["labels"]
    # The same samples, augmentations, mixtures and drop paths; only sums have another order.
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    ours, theirs = (state(folder)["scores"] for folder in (tmp_path / "alone", shared / "whole-0"))
    torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-3)


def test_workers__hold_the_same_state(shared):
    for part in ("", *map(str, MARKS)):
        first, second = (state(shared / f"whole-{rank}" / part) for rank in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("step", MARKS)
def test_workers__resume_bit_identically(shared, step):
    whole = state(shared / "whole-0")
    for rank in range(2):
        rest = shared / f"rest-{step}-{rank}"
        torch.testing.assert_close(state(rest), whole, rtol=0, atol=0, equal_nan=True)
        assert kept(rest)["metrics"] == kept(shared / "whole-0")["metrics"]


if __name__ == "__main__":
    work(int(sys.argv[1]), *map(Path, sys.argv[2:]))
