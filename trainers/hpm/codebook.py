"""A tokenizer for targets of the kind `tokens`: entries that a teacher's features gather around.

Spherical k-means: features and entries have unit length, and an entry moves to the mean of what
it is nearest to. Letters: F features of patches, D values of one, K entries, B images.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from hpm.config import Pretrain
from hpm.data.loading import evaluation_batches
from hpm.data.source import open_source
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
    source = open_source(config.data.name, "train", place.data)
    features, _, _ = build_features(config, place, this_worker().device)
    device, every = this_worker().device, max(1, len(source) // images)
    batches = evaluation_batches(source, config.data.image_size, batch_size=_BATCH)
    rows = []
    for batch in batches:
        chosen = batch.indices % every == 0
        if chosen.any():
            rows.append(features(Seen(batch.images[chosen].to(device))).flatten(0, 1).cpu())
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
    features_FD = normalize(features_FD.float(), dim=-1)
    codebook_KD = features_FD[torch.from_numpy(rng.permutation(count)[:entries])]
    for _ in range(rounds):
        nearest_F = torch.cat(
            [(part @ codebook_KD.T).argmax(dim=1) for part in torch.split(features_FD, 1 << 14)]
        )
        sums_KD = torch.zeros_like(codebook_KD).index_add_(0, nearest_F, features_FD)
        empty_K = torch.bincount(nearest_F, minlength=entries) == 0
        fresh = torch.from_numpy(rng.integers(count, size=int(empty_K.sum())))
        sums_KD[empty_K] = features_FD[fresh]
        codebook_KD = normalize(sums_KD, dim=-1)
    return codebook_KD
