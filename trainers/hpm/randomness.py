"""Randomness as an argument: every draw is a pure function of what it is for.

A generator is Philox, a counter-based one. Its key is the seed; purpose, epoch and index are the
upper three words of its 256-bit counter, and drawing advances the lowest word only. Two generators
that differ in any of the four are therefore disjoint streams, whatever was drawn before and in
whichever process: no random state needs to be saved, and no two purposes share a number.
"""

from enum import IntEnum, unique

import numpy as np

__all__ = ["Purpose", "generator", "own_seed"]


@unique
class Purpose(IntEnum):
    """What a stream is for. The numbers are part of every result: add, never renumber."""

    ORDER = 1
    """The order of the images in an epoch."""
    VIEW = 2
    """Crop and flip of one image in one epoch."""
    MASK = 3
    """Which patches of one image are hidden in one epoch."""
    INIT = 4
    """Initial weights."""
    PROBE = 5
    """Initial weights and order of an evaluation's own training."""
    SCENE = 6
    """The embedded data set's pictures."""
    DROP = 7
    """Which branches of a network one image skips in one epoch."""
    AUGMENT = 8
    """Distortions of one image in one epoch, beyond crop and flip."""
    MIX = 9
    """How the images of one step are mixed."""
    SAMPLE = 10
    """Regions of one image that a detector learns from in one epoch."""
    WATCH = 11
    """Masks under which training is looked at."""
    CODEBOOK = 12
    """Where the entries of a codebook begin."""


def generator(
    purpose: Purpose, *, seed: int, epoch: int = 0, index: int = 0
) -> np.random.Generator:
    """The stream of `purpose` for (seed, epoch, index); equal arguments give equal draws.

    `seed` is in [0, 2**128), `epoch` and `index` (a sample's index or a step) in [0, 2**64).

    Raises:
        ValueError: an argument is out of range.
    """
    if not (0 <= seed < 1 << 128 and 0 <= epoch < 1 << 64 and 0 <= index < 1 << 64):
        raise ValueError(
            "seed must be in [0, 2**128), epoch and index in [0, 2**64), "
            f"got seed={seed}, epoch={epoch}, index={index}."
        )
    counter = np.array([0, purpose, epoch, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def own_seed(seed: int) -> int:
    """The seed of an evaluation, whose order and crops are not to be those of pretraining."""
    return int(generator(Purpose.PROBE, seed=seed).integers(2**63))
