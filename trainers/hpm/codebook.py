"""A tokenizer for targets of the kind `tokens`: entries that a teacher's features gather around.

Spherical k-means: features and entries have unit length, and an entry moves to the mean of what
it is nearest to. Letters: F features of patches, D values of one, K entries, B images.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from hpm.config import Pretrain
from hpm.data.source import open_source
from hpm.data.views import evaluation_view, normalize
from hpm.distributed import this_worker
from hpm.progress import Place
from hpm.randomness import Purpose, generator
from hpm.targets import Seen, build_features

__all__ = ["fit_entries", "make_codebook"]

_BATCH = 128


def make_codebook(
    config: Pretrain, place: Place, file: Path, *, entries: int = 512, images: int = 2000
) -> None:
    """Write a codebook for `config.target` (of kind `tokens`), fitted to training images.

    The features are the teacher's, or without one the normalised pixels, of every patch of so many
    images, spread evenly over the training split.

    Raises:
        DataError: the data set or the teacher's weights are not at hand.
        ValueError: there are fewer patches than entries.
    """
    source, device = open_source(config.data.name, "train", place.data), this_worker().device
    direct = replace(config, target=replace(config.target, precompute=False))
    features, _, _ = build_features(direct, place, device)
    indices = np.linspace(0, len(source), min(images, len(source)), endpoint=False, dtype=int)
    rows = []
    for start in range(0, len(indices), _BATCH):
        chosen = [source.image(index) for index in indices[start : start + _BATCH].tolist()]
        views = np.stack([evaluation_view(image, config.data.image_size) for image in chosen])
        rows.append(features(Seen(normalize(views).to(device))).flatten(0, 1).cpu())
    save_file({"codebook": fit_entries(torch.cat(rows), entries)}, file)


def fit_entries(features_FD: Tensor, entries: int, *, rounds: int = 30, seed: int = 0) -> Tensor:
    """The entries [K, D], of unit length; an entry that none is nearest to begins anew elsewhere.

    Raises:
        ValueError: there are fewer features than entries.
    """
    count = len(features_FD)
    if count < entries:
        raise ValueError(f"A codebook of {entries} entries needs as many patches, got {count}.")
    rng = generator(Purpose.CODEBOOK, seed=seed)
    features_FD = functional.normalize(features_FD.float(), dim=-1)
    codebook_KD = features_FD[torch.from_numpy(rng.permutation(count)[:entries])]
    for _ in range(rounds):
        nearest_F = torch.cat(
            [(part @ codebook_KD.T).argmax(dim=1) for part in torch.split(features_FD, 1 << 14)]
        )
        sums_KD = torch.zeros_like(codebook_KD).index_add_(0, nearest_F, features_FD)
        empty_K = torch.bincount(nearest_F, minlength=entries) == 0
        fresh = torch.from_numpy(rng.integers(count, size=int(empty_K.sum())))
        sums_KD[empty_K] = features_FD[fresh]
        codebook_KD = functional.normalize(sums_KD, dim=-1)
    return codebook_KD
