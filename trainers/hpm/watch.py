"""Where is hard? Training looked at from time to time, on a few images of the validation split.

Of each image the student's loss, averaged over several random masks, is compared with the loss
that is predicted of the whole image, and both with what is foreground. What was seen is kept
as numbers; `hpm.figures` draws it. Letters: I images, P of them for panels, S side of an image, N
patches, U units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpm.config import Pretrain
from hpm.data.fashion_scenes.scenes import FashionScenes
from hpm.data.source import Source
from hpm.data.views import evaluation_view, normalize
from hpm.distributed import Worker
from hpm.masking import draw_mask, pool_units, select_hard, split_patches, spread_units
from hpm.model import MaskedModel
from hpm.noise import MaskNoise
from hpm.patches import patchify, unpatchify
from hpm.randomness import Purpose, generator
from hpm.ranks import area_under_curve, rank_correlation
from hpm.schedules import Scheduled
from hpm.targets import Seen, Target

__all__ = ["Look", "Watch", "denormalize", "look_steps"]


class Look(NamedTuple):
    """What was seen after a step; float32 on the CPU."""

    step: int
    true_IN: Tensor
    """The student's loss, mean over the masks that hide a patch; NaN where none does."""
    predicted_IN: Tensor | None
    """The loss that the teacher (without one, the student) predicts; None without a predictor."""
    chosen_PN: Tensor
    """One mask of each, int8: 0 visible, 1 hidden at random, 2 hidden by the guide."""
    rebuilt_PSS3: Tensor | None
    """The image under that mask, reconstructed, uint8; None where pixels are not the target."""


def look_steps(total: int, times: int, others: Sequence[float] = ()) -> frozenset[int]:
    """After which of `total` steps to look: evenly, the first and the last among them, and others.

    A single time is the last step; others are rounded.
    """
    first = total if times == 1 else 1
    steps = np.append(np.linspace(first, total, times), others).round().astype(int)
    return frozenset(steps.clip(1).tolist())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The images, and the looks so far. Every worker looks alike."""

    config: Pretrain
    pixels_ISS3: Tensor
    """uint8, as an evaluation sees them."""
    foreground_IN: NDArray[np.bool_] | None
    """Patches more than half of which are foreground, where the data set has one."""
    noise_KIU: Tensor
    """The draws of K masks that are random whatever a run's are, so that all are measured alike."""
    draw: MaskNoise
    """Draws the panels' masks, as training does."""
    seed: int
    indices: Sequence[int]
    """Of the images, in their split."""
    device: torch.device
    looks: list[Look] = field(default_factory=list)

    @classmethod
    def start(
        cls, config: Pretrain, source: Source, *, seed: int, epoch_steps: int, worker: Worker
    ) -> Self:
        """Images spread evenly over the split, for a run with `epoch_steps` steps an epoch.

        Raises:
            DataError: an image is unreadable.
        """
        count, units = min(config.watch.images, len(source)), config.num_units
        indices = np.linspace(0, len(source) - 1, count).astype(int).tolist()
        views = [evaluation_view(source.image(index), config.data.image_size) for index in indices]
        noise = [
            [_stream(seed, index, mask).random(units, dtype=np.float32) for index in indices]
            for mask in range(config.watch.masks)
        ]
        return cls(
            config=config,
            pixels_ISS3=torch.from_numpy(np.stack(views)),
            foreground_IN=_foreground(source, indices, config),
            noise_KIU=torch.from_numpy(np.array(noise)).to(worker.device),
            draw=MaskNoise(config, epoch_steps),
            seed=seed,
            indices=indices,
            device=worker.device,
        )

    @torch.no_grad()
    def look(
        self,
        student: MaskedModel,
        teacher: MaskedModel | None,
        target: Target,
        *,
        step: int,
        now: Scheduled,
    ) -> dict[str, float]:
        """Look after a step; what the numbers are of is said in `metrics`."""
        images = normalize(self.pixels_ISS3.numpy()).to(self.device)
        judge = student if teacher is None else teacher
        tokens = judge.encoder(images)
        own = None if teacher is None else tokens[:, 1:].float()
        values_IN = target.values(Seen(images, own))
        sums, counts = (torch.zeros(values_IN.shape[:2], device=self.device) for _ in range(2))
        for noise_IU in self.noise_KIU:
            mask_IU = draw_mask(noise_IU, None, num_masked=now.num_masked, num_hard=0)
            loss_IM, hidden_IM, _ = self._losses(student, target, images, values_IN, mask_IU)
            sums.scatter_add_(1, hidden_IM, loss_IM)
            counts.scatter_add_(1, hidden_IM, torch.ones_like(loss_IM))
        predicted_IN = None if judge.loss_predictor is None else judge.predicted(tokens)
        attended = self.config.mask.guide == "attention"
        guide_IN = judge.encoder.attend(images) if attended else predicted_IN
        chosen_PU = self._choose(guide_IN, step, now)
        rebuilt = self._rebuild(student, target, images, values_IN, chosen_PU > 0)
        self.looks.append(
            Look(
                step,
                (sums / counts).cpu(),
                None if predicted_IN is None else predicted_IN.cpu(),
                spread_units(chosen_PU, self.config.mask.unit).cpu(),
                None if rebuilt is None else rebuilt.cpu(),
            )
        )
        return self.metrics()

    def metrics(self) -> dict[str, float]:
        """Of the last look, each the mean over images.

        `rank_correlation` (Spearman's) of predicted and true loss, -1 to 1; `predicted_auc` and
        `true_auc`, the area under the ROC curve of each against the foreground, 0 to 1.
        """
        last = self.looks[-1]
        true, predicted = last.true_IN.numpy(), last.predicted_IN
        found = {}
        if predicted is not None:
            found["rank_correlation"] = rank_correlation(predicted.numpy(), true)
        if self.foreground_IN is not None:
            found["true_auc"] = area_under_curve(true, self.foreground_IN)
            if predicted is not None:
                found["predicted_auc"] = area_under_curve(predicted.numpy(), self.foreground_IN)
        return {name: value for name, value in found.items() if value is not None}

    def state(self) -> list[dict[str, Any]]:
        """The looks so far, for `restore`."""
        return [look._asdict() for look in self.looks]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over what an earlier `state` held."""
        self.looks[:] = [Look(**look) for look in state]

    def _losses(
        self, student: MaskedModel, target: Target, images: Tensor, values_IN: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses [I, M] under a mask of units, the patches that they are of, and what was said."""
        mask_IN = spread_units(mask, self.config.mask.unit)
        visible_IK, hidden_IM = split_patches(mask_IN, int(mask_IN[0].sum()))
        said = student(images, visible_IK, hidden_IM).values_BMP.float()
        index = hidden_IM if values_IN.ndim == 2 else hidden_IM[:, :, None]
        return target.loss(said, values_IN.take_along_dim(index, dim=1)), hidden_IM, said

    def _choose(self, guide_IN: Tensor | None, step: int, now: Scheduled) -> Tensor:
        """Masks [P, U] of the panels, as training would draw them now, marked as in `Look`."""
        settings = self.config.mask
        streams = (_stream(self.seed, index) for index in self.indices[: self.config.watch.panels])
        draws = np.stack([self.draw(stream, step - 1) for stream in streams])
        guide = None if guide_IN is None else pool_units(guide_IN[: len(draws)], settings.unit)
        chosen = draw_mask(
            torch.from_numpy(draws).to(self.device),
            guide,
            num_masked=now.num_masked,
            num_hard=now.num_hard,
            prefer=settings.prefer,
        ).to(torch.int8)
        if guide is not None and now.num_hard:
            chosen += select_hard(guide, now.num_hard, prefer=settings.prefer)
        return chosen

    def _rebuild(
        self, student: MaskedModel, target: Target, images: Tensor, values_IN: Tensor, mask: Tensor
    ) -> Tensor | None:
        """The first images [P, S, S, 3] with what is said of their hidden patches, uint8."""
        images, values = images[: len(mask)], values_IN[: len(mask)]
        _, hidden_PM, said_PMV = self._losses(student, target, images, values, mask)
        patch = self.config.encoder.patch_size
        patches = patchify(images, patch)
        index = hidden_PM[:, :, None].expand(-1, -1, patches.shape[2])
        match self.config.target.kind:
            case "pixels":
                pass
            case "normalized-pixels":
                # As MAE draws them: with the mean and deviation of the patch that was hidden.
                hidden = patches.gather(1, index)
                deviation = (hidden.var(dim=-1, keepdim=True) + 1e-6).sqrt()
                said_PMV = said_PMV * deviation + hidden.mean(dim=-1, keepdim=True)
            case _:
                return None
        return denormalize(unpatchify(patches.scatter(1, index, said_PMV), patch))


def _stream(seed: int, index: int, mask: int = 0) -> np.random.Generator:
    return generator(Purpose.WATCH, seed=seed, epoch=mask, index=index)


def denormalize(images_BCHW: Tensor) -> Tensor:
    """Bytes [B, S, S, 3] of normalised images: the inverse of `normalize`."""
    zero = normalize(np.zeros((1, 1, 1, 3), np.uint8)).to(images_BCHW.device)
    span = normalize(np.full((1, 1, 1, 3), 255, np.uint8)).to(images_BCHW.device) - zero
    shares = (images_BCHW - zero) / span
    return (shares.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


def _foreground(
    source: Source, indices: Sequence[int], config: Pretrain
) -> NDArray[np.bool_] | None:
    if not isinstance(source, FashionScenes):
        return None
    masks = [Image.fromarray(source.mask(index)).convert("RGB") for index in indices]
    views = np.stack([evaluation_view(mask, config.data.image_size) for mask in masks])
    shares = patchify(
        torch.from_numpy(views).permute(0, 3, 1, 2).float(), config.encoder.patch_size
    )
    foreground: NDArray[np.bool_] = (shares.mean(dim=-1) > 127.5).numpy()
    return foreground
