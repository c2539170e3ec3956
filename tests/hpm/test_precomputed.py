"""Features on disk: where they lie, what they are, and what becomes of damaged ones."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpm.config import Pretrain, Target
from hpm.data.source import open_source
from hpm.data.views import normalize
from hpm.frozen import FrozenTeacher
from hpm.precomputed import Precomputed
from hpm.progress import Place
from hpm.targets import Origin, Seen, build_target
from hpm.trainer import TRAINER

VIT = "vit_tiny_patch16_224"


@pytest.fixture
def kept(tiny: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrain:
    """With the features of a teacher's first block on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return replace(tiny, target=Target(kind="teacher", teacher=VIT, layer=0, precompute=True))


def _with(config: Pretrain, **settings: Any) -> Pretrain:
    return replace(config, target=replace(config.target, **settings))


def _folder(config: Pretrain, place: Place) -> Path:
    teacher = FrozenTeacher.load(config, place, torch.device("cpu"))
    return Precomputed.open(config, teacher, place).folder


def test_precomputed__averages_the_cells_of_a_patch(kept: Pretrain, teachers: Place) -> None:
    target = build_target(_with(kept, image_size=192), teachers)
    list(target.prepare())
    origin = Origin(torch.tensor([5]), torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]))
    read = target.values(Seen(torch.zeros(1, 3, 16, 16), None, origin))
    image = open_source("tiny", "train", teachers.data).image(5).resize((192, 192), 3)
    direct = target.values(Seen(normalize(np.array(image)[None])))
    torch.testing.assert_close(read, direct, rtol=2e-3, atol=2e-3)


def test_precomputed__lie_where_all_that_changes_a_bit_says(
    kept: Pretrain, teachers: Place
) -> None:
    last = _with(kept, layer=None)
    same = [last, _with(last, layer=11), _with(last, kind="tokens", codebook="codes")]
    assert len({_folder(config, teachers) for config in same}) == 1
    others = [kept, _with(last, project=True), _with(last, image_size=128)]
    others += [last, replace(last, precision="bfloat16")]
    folders = [_folder(config, teachers) for config in others]
    assert len({*folders, _folder(last, replace(teachers, threads=2))}) == 6


@pytest.mark.parametrize("size", [0, 60, 1000])
def test_precomputed__computes_a_damaged_file_anew(
    kept: Pretrain, teachers: Place, tmp_path: Path, size: int
) -> None:
    target = build_target(kept, teachers)
    list(target.prepare())
    (file,) = (tmp_path / "cache").rglob("*.*")
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert len(list(target.prepare())) == 1
    assert file.read_bytes() == whole
    assert list(file.parent.iterdir()) == [file]


def test_fits__asks_where_features_are_to_lie(
    kept: Pretrain, teachers: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TRAINER.fits(kept, None, teachers) is None
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = TRAINER.fits(kept, None, teachers)
    assert found is not None
    assert f"{tmp_path / 'file'} must be a folder that can be written" in found


def test_fits__tries_a_teacher_once(tiny: Pretrain, teachers: Place, tmp_path: Path) -> None:
    file = Path(shutil.copy(teachers.data[VIT], tmp_path / "vit.pth"))
    place = replace(teachers, data={**teachers.data, VIT: file})
    config = replace(tiny, target=Target(kind="teacher", teacher=VIT))
    assert TRAINER.fits(config, None, place) is None
    held = file.stat()
    file.write_bytes(bytes(held.st_size))
    os.utime(file, ns=(held.st_atime_ns, held.st_mtime_ns))
    assert TRAINER.fits(config, None, place) is None
    os.utime(file)
    found = TRAINER.fits(config, None, place)
    assert found is not None
    assert "vit.pth must hold the weights" in found
