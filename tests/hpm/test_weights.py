from pathlib import Path

import torch

from hpm.config import Pretrain
from hpm.learner import build_student
from hpm.weights import Description, export_encoder, load_encoder, timm_state


def test_export__brings_back_encoders_and_what_they_are(tiny: Pretrain, tmp_path: Path) -> None:
    student, teacher = (build_student(tiny, seed).encoder for seed in (0, 1))
    states = {"student": timm_state(student), "teacher": timm_state(teacher)}
    export_encoder(tmp_path, Description(tiny.encoder, tiny.data), **states)
    images = torch.randn(2, 3, 16, 16)
    loaded, description = load_encoder(tmp_path)
    assert description == Description(tiny.encoder, tiny.data)
    assert not loaded.training
    assert loaded(images).equal(student(images))
    assert load_encoder(tmp_path, role="teacher")[0](images).equal(teacher(images))


def test_export__without_a_teacher_writes_none(tiny: Pretrain, tmp_path: Path) -> None:
    encoder = build_student(tiny, 0).encoder
    export_encoder(tmp_path, Description(tiny.encoder, tiny.data), student=timm_state(encoder))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["encoder.json", "student.safetensors"]
