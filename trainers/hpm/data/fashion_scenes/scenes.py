"""FashionScenes as a labelled data set: 8,000 training and 2,000 validation scenes of 32 x 32.

The garments are Fashion-MNIST's 10,000 test images, of which the first 8,000 train: a split of our
own, not the official one. Neither a garment nor a photograph occurs in both splits.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpm.data.decoding import decode
from hpm.data.errors import DataError
from hpm.data.fashion_scenes.manifest import read_manifest, read_source
from hpm.data.fashion_scenes.render import NUM_WORDS, SIDE, Bytes, integral, render
from hpm.randomness import Purpose, generator

__all__ = ["CLASSES", "PHOTOGRAPHS", "FashionScenes", "Scenes", "rendered"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "camera", "coffee", "grass", "rocket"),
    "val": ("chelsea", "coins", "gravel", "hubble_deep_field"),
}

_SEED = 28
"""One for everybody: with another it would be another data set."""
_GARMENTS = {"train": slice(0, 8000), "val": slice(8000, 10000)}
_CHUNK = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """N rendered scenes of side S."""

    images: Bytes
    """[N, S, S, 3]."""
    masks: NDArray[np.bool_]
    """[N, S, S], True on the garment."""
    labels: Bytes
    """[N]."""

    def digest(self) -> str:
        """SHA-256 of all bytes."""
        parts = (self.images, self.masks, self.labels)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class FashionScenes:
    """One split."""

    split: Literal["train", "val"]

    @classmethod
    def open(cls, split: Literal["train", "val"]) -> "FashionScenes":
        """The split, rendered (once in a process). Raises DataError where that goes wrong."""
        rendered(split)
        return cls(split)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position here."""
        return CLASSES

    def __len__(self) -> int:
        garments = _GARMENTS[self.split]
        return int(garments.stop - garments.start)

    def image(self, index: int) -> Image.Image:
        """The scene, mode RGB."""
        return Image.fromarray(rendered(self.split).images[index])

    def label(self, index: int) -> int:
        """The garment's class."""
        return int(rendered(self.split).labels[index])

    def mask(self, index: int) -> NDArray[np.bool_]:
        """[S, S], True where the garment is, False where the photograph is."""
        mask: NDArray[np.bool_] = rendered(self.split).masks[index]
        return mask


@cache
def rendered(split: Literal["train", "val"]) -> Scenes:
    """All scenes of a split; a process renders them once.

    Raises:
        DataError: a source file is damaged, or the bytes are not those of the manifest.
    """
    scenes = _render(split)
    if scenes.digest() != read_manifest().rendered[split]:
        raise DataError(
            f"fashion-scenes ({split}) must be the same bytes everywhere, but renders otherwise "
            "here; the likely cause is a Pillow whose JPEG decoder is not libjpeg-turbo."
        )
    return scenes


def _render(split: Literal["train", "val"]) -> Scenes:
    garments, labels = (part[_GARMENTS[split]] for part in _fashion_mnist())
    photographs = [_photograph(name) for name in PHOTOGRAPHS[split]]
    stream = generator(Purpose.SCENE, seed=_SEED, epoch=_GARMENTS[split].start).bit_generator
    # Raw words: NumPy promises that these never change, which it does not of its distributions.
    words = stream.random_raw((len(labels), NUM_WORDS))
    chunks = [
        render(garments[start : start + _CHUNK], photographs, words[start : start + _CHUNK])
        for start in range(0, len(labels), _CHUNK)
    ]
    images, masks = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    assert images.shape[1] == SIDE
    return Scenes(images=images, masks=masks, labels=labels)


def _fashion_mnist() -> tuple[Bytes, Bytes]:
    """Grey values [10000, 28, 28] and labels [10000], behind IDX headers of 16 and 8 bytes."""
    images, labels = (
        np.frombuffer(gzip.decompress(read_source(f"t10k-{kind}-ubyte.gz")), np.uint8, offset=skip)
        for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return images.reshape(-1, 28, 28), labels


def _photograph(name: str) -> NDArray[np.int32]:
    return integral(np.asarray(decode(read_source(f"{name}.jpg"), named=f"{name}.jpg")))
