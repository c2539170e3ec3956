"""Where is hard: what a run sees of itself, and the pictures of it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hpm import watch
from hpm.config import Data, Mask, Predictor, Pretrain, Target, Watch
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.data.source import open_source
from hpm.data.views import normalize
from hpm.distributed import Worker
from hpm.figures import heat_map
from hpm.learner import build_student
from hpm.masking import draw_mask
from hpm.model import MaskedModel, Prediction
from hpm.noise import MaskNoise
from hpm.patches import patchify
from hpm.pretrain import run
from hpm.progress import Place, Progress, Result
from hpm.randomness import Purpose, generator
from hpm.ranks import area_under_curve, rank_correlation
from hpm.rules import ConfigError
from hpm.schedules import at_step
from hpm.targets import Seen, build_target
from hpm.teacher import build_teacher
from hpm.watch import denormalize, look_steps


def _drain(
    config: Pretrain, place: Place, *, resume: Path | None = None, save_at: int = 0, folder: Path
) -> tuple[list[Progress], Result]:
    stage = run(config, seed=0, place=place, inputs=None, resume=resume, should_stop=lambda: False)
    steps = []
    while True:
        try:
            steps.append(next(stage))
        except StopIteration as end:
            return steps, end.value
        if steps[-1].step == save_at:
            steps[-1].save(folder)


def _look(
    config: Pretrain, place: Place, student: MaskedModel, teacher: MaskedModel | None = None
) -> tuple[watch.Look, Tensor]:
    """One look after the last of 12 steps, and the images that were looked at."""
    source, worker = open_source("tiny", "val", place.data), Worker(0, 1, torch.device("cpu"))
    seen = watch.Watch.start(config, source, seed=0, epoch_steps=4, worker=worker)
    now = at_step(config, 11, epoch_steps=4)
    seen.look(student, teacher, build_target(config, place), step=12, now=now)
    return seen.looks[0], normalize(seen.pixels_ISS3.numpy())


@pytest.fixture
def scenes(tiny: Pretrain) -> Pretrain:
    """A run of FashionScenes of a few steps."""
    return replace(
        tiny,
        data=Data(name="fashion-scenes", image_size=32),
        encoder=replace(tiny.encoder, patch_size=8),
        optim=replace(tiny.optim, batch_size=2000),
        epochs=1,
        watch=Watch(times=2, images=6, masks=3, panels=2),
        mask=Mask(hard_share=(0.0, 0.5), schedule_by="step"),
    )


def test_look_steps__are_spread_from_the_first_step_to_the_last() -> None:
    assert look_steps(1000, 3) == {1, 500, 1000}
    assert look_steps(100, 1) == {100}
    assert look_steps(3, 10) == {1, 2, 3}
    assert look_steps(100, 0) == frozenset()


def test_look_steps__are_at_the_ends_of_chosen_epochs_too() -> None:
    assert look_steps(12, 0, [0.4, 4.0, 6.0]) == {1, 4, 6}
    assert look_steps(12, 2, [4.0]) == {1, 4, 12}


def test_watch__looks_at_the_ends_of_chosen_epochs(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    watched = Watch(times=0, epochs=(0.5, 2), images=4, masks=2, panels=2)
    steps, result = _drain(replace(tiny, watch=watched), tiny_place, folder=tmp_path)
    assert [p.step for p in steps if "rank_correlation" in p.metrics] == [2, 8]
    result.export(tmp_path)
    assert len(list((tmp_path / "figures").glob("panel-step-*.png"))) == 2


@pytest.mark.parametrize("epoch", [0, 3.5])
def test_config__looks_at_epochs_of_the_run_alone(tiny: Pretrain, epoch: float) -> None:
    with pytest.raises(ConfigError, match=r"watch\.epochs must be in \(0, epochs=3\], got"):
        replace(tiny, watch=Watch(epochs=(1, epoch)))


@pytest.mark.parametrize("panels", [0, 5])
def test_config__draws_a_panel_at_least_and_only_of_what_is_watched(panels: int) -> None:
    with pytest.raises(ConfigError, match=rf"panels must be in \[1, images=4\], got {panels}"):
        Watch(images=4, panels=panels)


def test_watch__says_how_well_the_prediction_ranks(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    config = replace(tiny, watch=Watch(times=3, images=4, masks=10, panels=2))
    steps, result = _drain(config, tiny_place, folder=tmp_path)
    seen = [p.step for p in steps if "rank_correlation" in p.metrics]
    assert seen == sorted(look_steps(12, 3))
    assert all(-1 <= p.metrics["rank_correlation"] <= 1 for p in steps if p.step in seen)
    assert result.metrics["rank_correlation"] == steps[-1].metrics["rank_correlation"]
    # Folders have no foreground to compare with.
    assert "predicted_auc" not in steps[-1].metrics


def test_watch__compares_with_the_foreground_where_there_is_one(
    scenes: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    _, result = _drain(scenes, tiny_place, folder=tmp_path)
    assert 0 <= result.metrics["predicted_auc"] <= 1
    assert 0 <= result.metrics["true_auc"] <= 1
    result.export(tmp_path)
    with np.load(tmp_path / "figures" / "hardness.npz") as held:
        foreground = held["foreground"].reshape(6, 4, 4)
    source = open_source("fashion-scenes", "val", tiny_place.data)
    assert isinstance(source, FashionScenes)
    for index, patches in zip(np.linspace(0, 1999, 6).astype(int), foreground, strict=True):
        shares = source.mask(index).reshape(4, 8, 4, 8).mean(axis=(1, 3))
        assert np.array_equal(patches, shares > 0.5)


def test_watch__changes_nothing_of_what_is_learnt(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    def weights(times: int) -> str:
        config = replace(tiny, epochs=1, watch=Watch(times=times, images=4, panels=2))
        steps, _ = _drain(config, tiny_place, folder=tmp_path)
        return steps[-1].trace()["weights"]

    assert weights(0) == weights(3)


def test_watch__of_a_resumed_run_is_that_of_one_that_never_stopped(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    config = replace(tiny, watch=Watch(times=4, images=4, masks=3, panels=2))
    for name in ("saved", "straight", "resumed"):
        (tmp_path / name).mkdir()
    _, straight = _drain(config, tiny_place, save_at=7, folder=tmp_path / "saved")
    _, resumed = _drain(config, tiny_place, resume=tmp_path / "saved", folder=tmp_path)
    assert resumed.metrics == straight.metrics
    straight.export(tmp_path / "straight")
    resumed.export(tmp_path / "resumed")
    names = sorted(path.name for path in (tmp_path / "straight" / "figures").iterdir())
    assert names == [
        "hardness.npz",
        *(f"panel-step-{step:07}.png" for step in sorted(look_steps(12, 4))),
        "predicted-loss.gif",
        "predicted-loss.png",
    ]
    for name in names[1:]:
        one, other = (tmp_path / run / "figures" / name for run in ("straight", "resumed"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_watch__of_a_run_resumed_on_cuda_can_be_exported(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    config = replace(tiny, watch=Watch(times=2, images=4, masks=3, panels=2))
    (tmp_path / "saved").mkdir()
    _drain(config, tiny_place, save_at=7, folder=tmp_path / "saved")
    _, result = _drain(config, tiny_place, resume=tmp_path / "saved", folder=tmp_path)
    result.export(tmp_path)
    with np.load(tmp_path / "figures" / "hardness.npz") as held:
        assert held["steps"].tolist() == [1, 12]


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({}, 5),
        ({"target": Target(kind="normalized-pixels")}, 5),
        ({"target": Target(kind="ema")}, 4),
        ({"predictor": Predictor(objective="none"), "mask": Mask(hard_share=0.0)}, 4),
        ({"predictor": Predictor(objective="none"), "mask": Mask(guide="attention")}, 4),
        ({"mask": Mask(guide="attention")}, 5),
    ],
    ids=["hpm", "normalized", "features", "mae", "attmask", "attmask that predicts"],
)
def test_figures__have_a_column_for_what_there_is(
    tiny: Pretrain,
    tiny_place: Place,
    tmp_path: Path,
    changes: dict[str, object],
    columns: int,
) -> None:
    config = replace(tiny, epochs=1, watch=Watch(times=1, images=3, masks=2, panels=2), **changes)
    _, result = _drain(config, tiny_place, folder=tmp_path)
    result.export(tmp_path)
    with Image.open(tmp_path / "figures" / "panel-step-0000004.png") as panel:
        assert panel.size == (116 * columns - 4, 16 + 116 * 2 - 4)


def test_figures__mark_the_masks_by_who_chose_them(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    config = replace(tiny, watch=Watch(times=1, images=4, masks=2, panels=4))
    _, result = _drain(config, tiny_place, folder=tmp_path)
    result.export(tmp_path)
    with np.load(tmp_path / "figures" / "hardness.npz") as held:
        chosen, predicted = held["chosen"][0], held["predicted"][0]
    # 12 of 16 are hidden in the end, half of them by the predicted loss: the highest.
    assert (chosen > 0).sum(axis=1).tolist() == [12] * 4
    assert (chosen == 2).sum(axis=1).tolist() == [6] * 4
    highest = np.argsort(-predicted, axis=1, kind="stable")[:, :6]
    assert (np.take_along_axis(chosen, highest, axis=1) == 2).all()


def test_look__tells_what_guides_from_what_is_predicted(tiny: Pretrain, tiny_place: Place) -> None:
    config = replace(tiny, mask=Mask(guide="attention"), watch=Watch(images=4, masks=2, panels=4))
    student = build_student(config, 0)
    teacher = build_teacher(config, build_student(config, 1))
    look, images = _look(config, tiny_place, student, teacher)
    assert look.predicted_IN is not None
    assert look.predicted_IN.equal(teacher.predict_loss(images))
    attended = teacher.encoder.attend(images).topk(6, dim=1).indices
    assert (look.chosen_PN == 2).sum(dim=1).tolist() == [6] * 4
    assert (look.chosen_PN.gather(1, attended) == 2).all()
    alone, _ = _look(replace(config, mask=Mask(hard_share=0.0)), tiny_place, student)
    assert alone.predicted_IN is not None
    assert alone.predicted_IN.equal(student.predict_loss(images))


@pytest.mark.parametrize("rest", ["random", "block", "grid"])
def test_look__averages_over_random_masks_whatever_a_run_hides(
    tiny: Pretrain, tiny_place: Place, rest: str
) -> None:
    mask = Mask(rest=rest, ratio=0.5, hard_share=0.0)
    config = replace(tiny, mask=mask, watch=Watch(images=4, masks=3, panels=1))
    student = build_student(config, 0)
    look, images = _look(config, tiny_place, student)
    found = np.full((3, 4, 16), np.nan)
    for number, index in np.ndindex(3, 4):
        stream = generator(Purpose.WATCH, seed=0, epoch=number, index=index)
        draws = stream.random(16, dtype=np.float32)
        hides = draws >= np.sort(draws)[8]
        visible, hidden = (torch.from_numpy(np.flatnonzero(part)) for part in (~hides, hides))
        image = images[index : index + 1]
        with torch.no_grad():
            said = student(image, visible[None], hidden[None]).values_BMP[0]
        errors = (said - patchify(image, 4)[0, hidden]).square().mean(dim=1)
        found[number, index, hides] = errors.numpy()
    count = (~np.isnan(found)).sum(axis=0)
    mean = np.where(count > 0, np.nansum(found, axis=0) / np.maximum(count, 1), np.nan)
    np.testing.assert_allclose(look.true_IN.numpy(), mean, rtol=1e-4)


def test_look__draws_the_panels_as_training_would_now(tiny: Pretrain, tiny_place: Place) -> None:
    config = replace(tiny, watch=Watch(images=4, masks=2, panels=4))
    grid = replace(config, mask=Mask(rest="grid", hard_share=0.0))
    look, _ = _look(grid, tiny_place, build_student(grid, 0))
    visible = look.chosen_PN.reshape(4, 4, 4) == 0
    assert visible[:, ::2, ::2].all()
    assert visible.sum() == 4 * 4
    mask = Mask(rest="block", ratio=(0.2, 0.8), schedule_by="step", hard_share=0.0)
    block = replace(config, mask=mask)
    look, _ = _look(block, tiny_place, build_student(block, 0))
    draw = MaskNoise(block, epoch_steps=4)
    noise = [draw(generator(Purpose.WATCH, seed=0, index=index), 11) for index in range(4)]
    expected = draw_mask(torch.from_numpy(np.stack(noise)), None, num_masked=13, num_hard=0)
    assert look.chosen_PN.equal(expected.to(torch.int8))


@pytest.mark.parametrize("kind", ["pixels", "normalized-pixels"])
def test_look__rebuilds_the_image_from_what_is_right_of_its_patches(
    tiny: Pretrain, tiny_place: Place, kind: str
) -> None:
    config = replace(tiny, target=Target(kind=kind), watch=Watch(images=4, masks=2, panels=2))
    student, target = build_student(config, 0), build_target(config, tiny_place)

    def know(_: object, seen: tuple[Tensor, ...], said: Prediction) -> Prediction:
        values = target.values(Seen(seen[0])).take_along_dim(seen[2][:, :, None], dim=1)
        return said._replace(values_BMP=values)

    student.register_forward_hook(know)
    look, images = _look(config, tiny_place, student)
    assert look.rebuilt_PSS3 is not None
    assert look.rebuilt_PSS3.equal(denormalize(images[:2]))


def test_look__leaves_visible_patches_as_they_are(tiny: Pretrain, tiny_place: Place) -> None:
    config = replace(tiny, watch=Watch(images=4, masks=2, panels=2))
    student = build_student(config, 0)

    def grey(_: object, __: object, said: Prediction) -> Prediction:
        return said._replace(values_BMP=torch.zeros_like(said.values_BMP))

    student.register_forward_hook(grey)
    look, images = _look(config, tiny_place, student)
    hidden = look.chosen_PN.reshape(2, 4, 4) > 0
    hidden = hidden.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert look.rebuilt_PSS3 is not None
    assert look.rebuilt_PSS3[~hidden].equal(denormalize(images[:2])[~hidden])
    # ImageNet's mean, which is 0 where images are normalised.
    assert (look.rebuilt_PSS3[hidden] == torch.tensor([124, 116, 104])).all()


def test_figures__rebuild_what_is_seen_as_it_was(scenes: Pretrain) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(denormalize(normalize(pixels)).numpy(), pixels)


def test_heat_map__is_red_where_it_is_high_and_white_where_nothing_is_known() -> None:
    values = np.array([8.0, -8.0, 0.0, math.nan], dtype=np.float32)
    colours = heat_map(values)
    assert colours.shape == (2, 2, 3)
    assert colours[0, 0].tolist() == [128, 0, 0]
    assert colours[0, 1, 2] > colours[0, 1, 0]
    assert colours[1, 1].tolist() == [255, 255, 255]


def test_rank_correlation__is_of_order_alone() -> None:
    first = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)).numpy()
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    missing = first.copy()
    missing[:, :5] = np.nan
    assert rank_correlation(missing, first) == pytest.approx(1)
    assert rank_correlation(np.ones_like(first), first) is None


def test_area_under_curve__counts_pairs_in_the_right_order() -> None:
    truth = np.array([[True, True, False, False]])
    scores: Callable[..., np.ndarray] = lambda *s: np.array([s], dtype=np.float32)  # noqa: E731
    assert area_under_curve(scores(4, 3, 2, 1), truth) == 1
    assert area_under_curve(scores(1, 2, 3, 4), truth) == 0
    assert area_under_curve(scores(4, 1, 2, 3), truth) == 0.5
    assert area_under_curve(scores(1, 1, 1, 1), truth) == 0.5
    assert area_under_curve(scores(1, 2, 3, 4), np.zeros((1, 4), dtype=bool)) is None
