import torch

from hpm.config import Pretrain
from hpm.evaluate.config import Pixels
from hpm.evaluate.references import run_pixels, run_random
from hpm.learner import build_student
from hpm.weights import load_encoder, timm_state


def test_random__is_the_encoder_that_pretraining_starts_from(drain, stage, settings, tmp_path):
    done = drain(stage(run_random, settings, None, seed=3))
    assert [(progress.step, progress.total) for progress in done.steps] == [(1, 1)]
    done.result.export(tmp_path)
    encoder, description = load_encoder(tmp_path)
    start = build_student(Pretrain(data=settings.data, encoder=settings.encoder), 3).encoder
    torch.testing.assert_close(encoder.state_dict(), timm_state(start), rtol=0, atol=0)
    assert (description.data, description.encoder) == (settings.data, settings.encoder)


def test_random__needs_nothing_to_resume(drain, stage, settings, tmp_path):
    (tmp_path / "save").mkdir()
    drain(stage(run_random, settings, None), save_at=1, folder=tmp_path / "save")
    for name, resume, steps in (("first", None, 1), ("second", tmp_path / "save", 0)):
        (tmp_path / name).mkdir()
        done = drain(stage(run_random, settings, None, resume=resume))
        assert len(done.steps) == steps, "it goes on after the step that was saved"
        done.result.export(tmp_path / name)
    first, second = (load_encoder(tmp_path / name)[0].state_dict() for name in ("first", "second"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_pixels__has_no_step_left_after_its_only_one(drain, stage, settings, tmp_path):
    done = drain(stage(run_pixels, Pixels(data=settings.data), None, resume=tmp_path))
    assert done.steps == []
    assert done.result is not None


def test_references__trace_what_they_export(drain, stage, settings):
    def trace(run, config, seed):
        return drain(stage(run, config, None, seed=seed)).steps[0].trace()

    random = [trace(run_random, settings, seed) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]
    pixels = [trace(run_pixels, Pixels(data=settings.data), seed) for seed in (0, 1)]
    assert pixels[0] == pixels[1] != random[0]
    assert {frozenset(found) for found in (*random, *pixels)} == {frozenset({"state"})}


def test_references__stop_when_told(drain, stage, settings):
    for run, config in ((run_random, settings), (run_pixels, Pixels(data=settings.data))):
        done = drain(stage(run, config, None, should_stop=lambda: True))
        assert (done.steps, done.result) == ([], None)
