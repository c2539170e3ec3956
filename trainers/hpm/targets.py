"""What is reconstructed: of each target its values of every patch, and the loss against them.

Letters: B images, N patches, M hidden, P values of one patch, D features, K entries of a codebook.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias, assert_never, final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hpm.config import Pretrain
from hpm.distributed import this_worker
from hpm.frozen import FrozenTeacher, load_codebook
from hpm.hog import hog
from hpm.losses import feature_loss, reconstruction_loss, token_loss
from hpm.patches import normalize_patches, patchify
from hpm.precomputed import Precomputed
from hpm.progress import Place

__all__ = ["Features", "Origin", "Seen", "Target", "build_features", "build_target"]


class Origin(NamedTuple):
    """Which images of the training split the views of a batch show, and what of them."""

    indices_B: Tensor
    crops_B5: Tensor
    """As in `hpm.data.loading.Batch`."""


class Seen(NamedTuple):
    """What a target may be made of, of one batch."""

    images_BCHW: Tensor
    own_BND: Tensor | None = None
    """The patch tokens of the run's own teacher, where the target is made of them."""
    origin: Origin | None = None
    """None for images that are no training views."""


def _nothing() -> Iterator[None]:
    yield from ()


Features: TypeAlias = tuple[Callable[[Seen], Tensor], int, Callable[[], Iterator[None]]]
"""Features [B, N, D] of every patch, D, and what must be done first."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Values of every patch, and the loss of what is said of the hidden ones.

    `values` gives [B, N, P], of tokens [B, N]; `loss` compares predictions [B, M, outputs] with
    those of the hidden patches, as [B, M].
    """

    outputs: int
    values: Callable[[Seen], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    prepare: Callable[[], Iterator[None]] = _nothing
    """Does what must be done before training, with a pause before each part of it."""


def build_target(config: Pretrain, place: Place, device: torch.device | None = None) -> Target:
    """The target of a run, with what is frozen on a device (None: the worker's).

    Raises:
        DataError: weights or a codebook are absent or not what they should be, or the disk has no
            room for features.
    """
    settings, patch = config.target, config.encoder.patch_size
    device = device or this_worker().device
    plain = partial(reconstruction_loss, form=settings.loss)
    match settings.kind:
        case "pixels":
            return Target(outputs=3 * patch**2, values=partial(_pixels, patch), loss=plain)
        case "normalized-pixels":
            return Target(outputs=3 * patch**2, values=partial(_normalized, patch), loss=plain)
        case "hog":
            bins, cell = settings.hog_bins, settings.hog_cell

            def histograms(seen: Seen) -> Tensor:
                return hog(seen.images_BCHW, patch, bins=bins, cell=cell)

            return Target(outputs=3 * bins * (patch // cell) ** 2, values=histograms, loss=plain)
        case "ema":
            return Target(outputs=config.encoder.width, values=_own, loss=feature_loss)
        case "teacher":
            features, width, prepare = build_features(config, place, device)
            return Target(outputs=width, values=features, loss=feature_loss, prepare=prepare)
        case "tokens":
            features, width, prepare = build_features(config, place, device)
            codebook_KD = load_codebook(config, place, device, width=width)
            return Target(
                outputs=len(codebook_KD),
                values=partial(_tokens, features, codebook_KD),
                loss=token_loss,
                prepare=prepare,
            )
        case other:
            assert_never(other)


def _pixels(patch_size: int, seen: Seen) -> Tensor:
    return patchify(seen.images_BCHW, patch_size)


def _normalized(patch_size: int, seen: Seen) -> Tensor:
    return normalize_patches(patchify(seen.images_BCHW, patch_size))


def _own(seen: Seen) -> Tensor:
    assert seen.own_BND is not None, "the target ema needs a teacher"
    return seen.own_BND


def build_features(config: Pretrain, place: Place, device: torch.device) -> Features:
    """The features that a target of kind `teacher` or `tokens` is made of.

    Raises:
        DataError: the teacher's weights are not at hand or not its own, or do not fit the patches,
            or the disk has no room for its features.
    """
    if config.target.teacher is None:
        patch = config.encoder.patch_size
        return partial(_normalized, patch), 3 * patch**2, _nothing
    teacher = FrozenTeacher.load(config, place, device)
    if not config.target.precompute:
        return lambda seen: teacher.features(seen.images_BCHW), teacher.width, _nothing
    kept = Precomputed.open(config, teacher, place)

    def features(seen: Seen) -> Tensor:
        if seen.origin is None:
            return teacher.features(seen.images_BCHW)
        return kept.features(*seen.origin)

    return features, teacher.width, kept.fill


def _tokens(features: Callable[[Seen], Tensor], codebook_KD: Tensor, seen: Seen) -> Tensor:
    """The entry [B, N] nearest to each patch's features, both at unit length (BEiT v2)."""
    similarity_BNK = normalize(features(seen), dim=-1) @ normalize(codebook_KD, dim=-1).T
    return similarity_BNK.argmax(dim=-1)
