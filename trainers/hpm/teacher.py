"""The teacher: a copy of the student that trails it, and says which patches will be hard.

teacher <- momentum * teacher + (1 - momentum) * student, after each optimizer step
"""

import torch

from hpm.config import Pretrain
from hpm.model import MaskedModel

__all__ = ["build_teacher", "update_teacher"]


def build_teacher(config: Pretrain, student: MaskedModel) -> MaskedModel:
    """The student's encoder and loss predictor as they are now; a teacher reconstructs nothing."""
    teacher = MaskedModel(
        config.encoder,
        config.decoder,
        config.predictor,
        image_size=config.data.image_size,
        as_tokens=config.mask.as_tokens,
        outputs=student.outputs,
        reconstructor=False,
    )
    state = student.state_dict()
    teacher.load_state_dict({name: state[name] for name in teacher.state_dict()})
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: MaskedModel, student: MaskedModel, momentum: float) -> None:
    """Move the teacher's weights towards the student's, once a step (paper, Figure 3)."""
    source = dict(student.named_parameters())
    names, trailing = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(trailing, [source[name] for name in names], 1.0 - momentum)
