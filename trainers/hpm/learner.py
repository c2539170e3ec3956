"""What a pretraining run changes as it goes: student, teacher, optimizer; and one step of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, final

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hpm.checkpoint import load_state, save_state
from hpm.config import Pretrain
from hpm.data.loading import Batch
from hpm.distributed import Worker, average_gradients
from hpm.figures import write_figures
from hpm.model import MaskedModel, initialize
from hpm.objective import hpm_losses
from hpm.optim import build_optimizer, set_learning_rate
from hpm.schedules import Scheduled
from hpm.targets import Origin, Target
from hpm.teacher import build_teacher, update_teacher
from hpm.tracing import digest
from hpm.watch import Watch
from hpm.weights import Description, export_encoder, timm_state

__all__ = ["Learner", "Taken", "build_student"]


class Taken(NamedTuple):
    """An optimizer step that was taken by this worker, and what it was taken on, part by part."""

    means: dict[str, Tensor]
    """Of the losses, and the norm of the gradient; scalars."""
    samples: list[Tensor]
    """Each [B] int64, positions in the source."""
    masks: list[Tensor]
    """Each [B, N] bool."""


def build_student(config: Pretrain, seed: int, *, outputs: int | None = None) -> MaskedModel:
    """The model at step 0; what two rows have in common starts from the same weights.

    `outputs` are the values of a patch's target (None: its pixels).
    """
    student = MaskedModel(
        config.encoder,
        config.decoder,
        config.predictor,
        image_size=config.data.image_size,
        as_tokens=config.mask.as_tokens,
        outputs=outputs,
    )
    initialize(student, seed=seed)
    return student


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """The parts of a run that have state, equal on all of its workers."""

    config: Pretrain
    worker: Worker
    target: Target
    student: MaskedModel
    teacher: MaskedModel | None
    optimizer: AdamW
    watch: Watch | None

    @classmethod
    def start(
        cls, config: Pretrain, target: Target, watch: Watch | None, *, seed: int, worker: Worker
    ) -> Self:
        """Everything at step 0, on the worker's device."""
        student = build_student(config, seed, outputs=target.outputs).to(worker.device)
        teacher = build_teacher(config, student) if config.needs_teacher else None
        return cls(
            config=config,
            worker=worker,
            target=target,
            student=student,
            teacher=None if teacher is None else teacher.to(worker.device),
            optimizer=build_optimizer(student, config.optim),
            watch=watch,
        )

    def step(self, parts: Sequence[Batch], now: Scheduled) -> Taken:
        """One optimizer step over the parts of a batch."""
        set_learning_rate(self.optimizer, now.learning_rate)
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        masks = []
        for part in parts:
            losses, mask_BN = self._backward(part, now, len(parts))
            masks.append(mask_BN)
            for name, loss in losses.items():
                sums[name] = sums[name] + loss if name in sums else loss
        average_gradients(self.student)
        clip = self.config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), clip)
        self.optimizer.step()
        if self.teacher is not None:
            update_teacher(self.teacher, self.student, now.momentum)
        means = {name: loss / len(parts) for name, loss in sums.items()}
        return Taken({**means, "grad_norm": norm}, [part.indices for part in parts], masks)

    def save(self, folder: Path, *, step: int, metrics: Mapping[str, float]) -> None:
        """Write all that is needed to go on after `step`."""
        teacher = None if self.teacher is None else self.teacher.state_dict()
        state = {
            "step": step,
            "metrics": dict(metrics),
            "student": self.student.state_dict(),
            "teacher": teacher,
            "optimizer": self.optimizer.state_dict(),
            "watch": None if self.watch is None else self.watch.state(),
        }
        save_state(folder, state)

    def trace(self, taken: Taken) -> dict[str, str]:
        """Digests of the state after a step, before another is taken: one for each kind of it."""
        state: dict[str, object] = {
            "weights": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "samples": taken.samples,
            "masks": taken.masks,
        }
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        return {name: digest(value) for name, value in state.items()}

    def restore(self, folder: Path) -> tuple[int, dict[str, float]]:
        """Take over what `save` wrote; its step and metrics."""
        # Weights and moments are copied to where theirs are; what was seen stays on the CPU.
        state = load_state(folder, torch.device("cpu"))
        self.student.load_state_dict(state["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.watch is not None:
            self.watch.restore(state["watch"])
        return state["step"], state["metrics"]

    def look(self, step: int, now: Scheduled) -> dict[str, float]:
        """Look at the images of the watch after a step; see its metrics."""
        assert self.watch is not None, "nothing is watched"
        return self.watch.look(self.student, self.teacher, self.target, step=step, now=now)

    def export(self, folder: Path) -> None:
        """Write the encoders of student and, where there is one, teacher, and what was seen."""
        if self.watch is not None:
            write_figures(folder / "figures", self.watch)
        export_encoder(
            folder,
            Description(self.config.encoder, self.config.data),
            student=timm_state(self.student.encoder),
            teacher=None if self.teacher is None else timm_state(self.teacher.encoder),
        )

    def _backward(
        self, part: Batch, now: Scheduled, num_parts: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        losses = hpm_losses(
            self.student,
            self.teacher,
            part.images.to(self.worker.device, non_blocking=True),
            part.noise.to(self.worker.device, non_blocking=True),
            config=self.config,
            target=self.target,
            now=now,
            origin=Origin(part.indices, part.crops),
        )
        # The gradient is the mean over the parts; torch leaves `backward` without types.
        torch.autograd.backward(losses.total / num_parts)
        values = {"loss": losses.total, "reconstruction_loss": losses.reconstruction}
        if losses.predictor is not None:
            values["predictor_loss"] = losses.predictor
        if self.teacher is not None:
            values["mask_overlap"] = losses.overlap
        return {name: value.detach() for name, value in values.items()}, losses.mask_BN
