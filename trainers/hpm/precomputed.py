"""A teacher's features of whole images, computed once and kept on the disk of each machine.

They are those of the image squeezed into a square, as float16; of a view the crop is read out of
them, at the middle of each cell, and the cells of a patch are averaged. Files hold 128 images each,
in the order of the data set, so that what is in a batch, and so every bit, is the same whichever
worker fills them; what else a bit depends on names their folder. Letters: B images, D features, G
cells of a side of the teacher's grid, N patches.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import Self, final

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from hpm.config import Pretrain
from hpm.data.errors import UnreachableError
from hpm.data.fingerprint import file_digest, fingerprint
from hpm.data.source import Source, open_source
from hpm.data.views import normalize
from hpm.distributed import this_worker
from hpm.frozen import FrozenTeacher
from hpm.hub import find_weights
from hpm.progress import Place

__all__ = ["IMAGES", "Precomputed", "features_folder"]

IMAGES = 128
"""Of one file. Part of the numbers: a matrix product's last bits depend on its shape."""


def features_folder() -> Path:
    """`hpm/features/` of the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hpm" / "features"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Precomputed:
    """The features of a training split, in a folder of files."""

    teacher: FrozenTeacher
    source: Source
    folder: Path
    side: int
    """Patches of one row of a view."""

    @classmethod
    def open(cls, config: Pretrain, teacher: FrozenTeacher, place: Place) -> Self:
        """The features of a run's training split by its teacher; none need be there yet.

        They lie in a folder of `features_folder`.

        Raises:
            UnreachableError: it cannot be written, or the disk has no room for them.
        """
        source = open_source(config.data.name, "train", place.data)
        folder = features_folder() / _digest(config, teacher, place)
        features = cls(teacher=teacher, source=source, folder=folder, side=config.side)
        features._require_room()
        return features

    def fill(self) -> Iterator[None]:
        """Compute what is missing or damaged, and stop for a moment before each file.

        Workers begin at different files, and take what another one has written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        worker, count = this_worker(), -(-len(self.source) // IMAGES)
        first = worker.rank * count // worker.world
        for number in (*range(first, count), *range(first)):
            if not self._is_whole(number):
                yield
                self._write(number)

    def features(self, indices_B: Tensor, crops_B5: Tensor) -> Tensor:
        """[B, N, D] float32, on the teacher's device: of the patches of views of these images."""
        device, side = this_worker().device, self.side * self.teacher.cells
        maps = torch.from_numpy(np.stack([self._map(index) for index in indices_B.tolist()]))
        middles = (torch.arange(side, device=device) + 0.5) / side
        left, top, right, bottom, mirrored = crops_B5.to(device).T[:, :, None]
        across = torch.where(mirrored > 0, middles.flip(0), middles)
        x_BG, y_BG = left + (right - left) * across, top + (bottom - top) * middles
        shape = (len(x_BG), side, side)
        places = torch.stack([x_BG[:, None].expand(shape), y_BG[:, :, None].expand(shape)], dim=-1)
        read_BDGG = grid_sample(
            maps.to(device).float(), 2 * places - 1, padding_mode="border", align_corners=False
        )
        return avg_pool2d(read_BDGG, self.teacher.cells).flatten(2).transpose(1, 2)

    def _map(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        number, row = divmod(index, IMAGES)
        held = np.load(self._file(number), mmap_mode="r", allow_pickle=False)
        return np.array(held[row])

    def _is_whole(self, number: int) -> bool:
        try:
            held = np.load(self._file(number), mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError):
            return False
        return tuple(held.shape) == (len(self._indices(number)), *self._map_shape)

    def _write(self, number: int) -> None:
        size = (self.teacher.image_size, self.teacher.image_size)
        squares = [
            np.asarray(self.source.image(index).resize(size, Image.Resampling.BICUBIC))
            for index in self._indices(number)
        ]
        maps = self.teacher.map(normalize(np.stack(squares)).to(this_worker().device))
        # A name of its own until it is whole: others, on other machines too, may write the same.
        written = self._file(number).with_suffix(f".{token_hex(4)}.part")
        try:
            with written.open("wb") as file:
                np.save(file, maps.cpu().half().numpy(), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            written.replace(self._file(number))
        finally:
            written.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.npy"

    def _indices(self, number: int) -> range:
        return range(number * IMAGES, min((number + 1) * IMAGES, len(self.source)))

    @property
    def _map_shape(self) -> tuple[int, int, int]:
        cells = self.side * self.teacher.cells
        return self.teacher.width, cells, cells

    def _require_room(self) -> None:
        there = self.folder
        while not there.exists():
            there = there.parent
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise UnreachableError(
                f"{there} must be a folder that can be written, for the teacher's features are to "
                "lie there. Set XDG_CACHE_HOME to such a folder, or leave target.precompute out."
            )
        needed = 2 * len(self.source) * prod(self._map_shape)
        held = sum(file.stat().st_size for file in self.folder.glob("*.npy"))
        free = shutil.disk_usage(there).free
        if needed - held > free:
            raise UnreachableError(
                f"The teacher's features of {len(self.source)} images need "
                f"{needed / 2**30:.1f} GiB, but {there} has {free / 2**30:.1f} GiB free. Set "
                "XDG_CACHE_HOME to a folder with room, or leave target.precompute out."
            )


def _digest(config: Pretrain, teacher: FrozenTeacher, place: Place) -> str:
    """Of all that the features' bits depend on."""
    name = config.target.teacher
    assert name is not None
    what = {
        "teacher": name,
        "layer": teacher.layer,
        "project": teacher.project,
        "image_size": teacher.image_size,
        "side": config.side,
        "precision": config.precision,
        "weights": file_digest(find_weights(name, place)),
        "data": fingerprint(config.data.name, place.data),
        "device": this_worker().device.type,
        "threads": place.threads,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]
