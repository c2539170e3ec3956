"""Teachers out of files: what they make of images, and what is said of those that cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm import create_model
from torch import Tensor, nn

from hpm.config import Pretrain, Target
from hpm.data.errors import DataError, UnreachableError
from hpm.data.views import IMAGENET_MEAN, IMAGENET_STD
from hpm.hub import find_weights
from hpm.progress import Place
from hpm.targets import Seen, build_target

VIT, COAT, PIT = "vit_tiny_patch16_224", "coat_lite_tiny", "pit_ti_224"
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"


def _with(tiny: Pretrain, name: str, **settings: Any) -> Pretrain:
    return replace(tiny, target=Target(kind="teacher", teacher=name, **settings))


def _plain(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _seen(plain: Tensor) -> Seen:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return Seen((plain - mean) / std)


def _as_timm(name: str, place: Place, plain: Tensor) -> tuple[nn.Module, Tensor]:
    """timm's own model of a file, and what it makes of the patches of images in [0, 1]."""
    overlay = {"file": str(place.data[name]), "custom_load": False}
    model = create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=plain.shape[2]
    )
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model, model.eval().forward_features((plain - mean) / std)[:, 1:]


@pytest.mark.parametrize(("name", "stride", "cells"), [(VIT, 16, 1), (VIT, 16, 2), (COAT, 32, 1)])
def test_teacher__makes_of_patches_what_timm_makes_of_them(
    tiny: Pretrain, teachers: Place, name: str, stride: int, cells: int
) -> None:
    """At a size that it was not made for: one with positions, and one without any."""
    size = 4 * cells * stride
    config = _with(tiny, name, image_size=None if cells == 1 else size)
    _, tokens = _as_timm(name, teachers, _plain(size))
    expected = tokens.reshape(2, 4, cells, 4, cells, -1).mean(dim=(2, 4)).flatten(1, 2)
    values = build_target(config, teachers).values(_seen(_plain(size)))
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-3)


def test_teacher__projects_as_its_head_does(tiny: Pretrain, teachers: Place) -> None:
    target = build_target(_with(tiny, VIT, project=True), teachers)
    model, tokens = _as_timm(VIT, teachers, _plain(64))
    assert target.outputs == 1000
    with torch.no_grad():
        expected = model.head(tokens)
    torch.testing.assert_close(target.values(_seen(_plain(64))), expected, rtol=1e-3, atol=1e-3)


def test_teacher__of_a_grid_that_is_not_the_students_is_refused(
    tiny: Pretrain, teachers: Place
) -> None:
    """Patches of 16 pixels, of which one begins every 8, without padding."""
    config = _with(tiny, PIT, layer=0, image_size=224)
    with pytest.raises(DataError, match=r"must have 28 x 28 cells .* got 27 x 27 at 224 pixels"):
        build_target(config, teachers)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{VIT}.dinoo", rf"one of timm's models, got '{VIT}\.dinoo'\. It has {VIT}\.augreg_in21k"),
        ("vit_tinny_patch16_224", f"one of timm's models.* It has .*{VIT}"),
        ("vit_base_patch16_clip_224.openai", f"must be built with QuickGELU.* Name {CLIP} instead"),
    ],
)
@pytest.mark.parametrize("at_hand", [False, True])
def test_teacher__that_timm_does_not_have_is_refused(
    tiny: Pretrain, teachers: Place, name: str, words: str, at_hand: bool
) -> None:
    files = {name: teachers.data[VIT]} if at_hand else {}
    with pytest.raises(DataError, match=words):
        build_target(_with(tiny, name), replace(teachers, data={**teachers.data, **files}))


def test_teacher__of_openai_is_one_of_quickgelu(teachers: Place) -> None:
    file = teachers.data[VIT]
    assert find_weights(CLIP, replace(teachers, data={CLIP: file})) == file


@pytest.fixture
def hub(tiny_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place that allows what is not at hand to be fetched."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return replace(tiny_place, download=True)


def test_weights__are_fetched_where_the_place_allows_it(
    hub: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def fetch(*what: str) -> str:
        asked.append(what)
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert find_weights(VIT, hub) == tmp_path / "fetched"
    ((repository, file),) = asked
    assert repository.startswith(f"timm/{VIT}.")
    assert file == "model.safetensors"
    with pytest.raises(UnreachableError, match=f"{VIT} are not at hand.*--allow-download"):
        find_weights(VIT, replace(hub, download=False))
    assert len(asked) == 1


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("no such file")])
def test_weights__that_cannot_be_fetched_are_named(
    hub: Place, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fetch(*_: str) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    words = f"Weights of {VIT} could not be fetched: {error}.* --data {VIT}=FILE"
    with pytest.raises(UnreachableError, match=words):
        find_weights(VIT, hub)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02G\x00", ["weights"], {}, {"state_dict": {}}, {"state_dict": 5}, {"epoch": 3}],
)
def test_teacher__whose_file_holds_no_weights_is_refused(
    tiny: Pretrain, teachers: Place, tmp_path: Path, content: object
) -> None:
    file = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(DataError, match=rf"bad\.pth must hold the weights of {VIT}") as caught:
        build_target(_with(tiny, VIT), replace(teachers, data={VIT: file}))
    assert not caught.value.retry
