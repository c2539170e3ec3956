"""A teacher's features of whole images, computed once and kept on the disk of each machine.

They are those of the image squeezed into a square, as float16; of a view the crop is read out of
them, at the middle of each patch. Files hold 128 images each, in the order of the data set, so that
what is in a batch, and so every bit, is the same whoever fills them. Letters: B images, D features,
G cells of a side of the teacher's grid, N patches.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Self, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

from hpm.config import Pretrain
from hpm.data.errors import UnreachableError
from hpm.data.fingerprint import file_digest, fingerprint
from hpm.data.source import Source, open_source
from hpm.data.views import normalize
from hpm.distributed import this_worker
from hpm.frozen import FrozenTeacher
from hpm.hub import find_weights
from hpm.progress import Place

__all__ = ["IMAGES", "Precomputed"]

IMAGES = 128
"""Of one file. Part of the numbers: a matrix product's last bits depend on its shape."""


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

        They lie in `hpm/features/` of the user's cache folder (XDG_CACHE_HOME, or ~/.cache).

        Raises:
            UnreachableError: the disk has no room for them.
        """
        assert config.target.teacher is not None
        weights = file_digest(find_weights(config.target.teacher, place))
        data = fingerprint(config.data.name, place.data)
        what = json.dumps([asdict(config.target), config.precision, config.side, weights, data])
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "hpm" / "features" / hashlib.sha256(what.encode()).hexdigest()[:20]
        source = open_source(config.data.name, "train", place.data)
        features = cls(teacher=teacher, source=source, folder=folder, side=config.side)
        features._require_room()
        return features

    def fill(self) -> Iterator[None]:
        """Compute what is missing, and stop for a moment before each file.

        Workers begin at different files, and take what another one has written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        worker, count = this_worker(), -(-len(self.source) // IMAGES)
        first = worker.rank * count // worker.world
        for number in (*range(first, count), *range(first)):
            if not self._file(number).exists():
                yield
                self._write(number)

    def features(self, indices_B: Tensor, crops_B5: Tensor) -> Tensor:
        """[B, N, D] float32, on the teacher's device: of the patches of views of these images."""
        device = this_worker().device
        maps = torch.from_numpy(np.stack([self._map(index) for index in indices_B.tolist()]))
        middles = (torch.arange(self.side, device=device) + 0.5) / self.side
        left, top, right, bottom, mirrored = crops_B5.to(device).T[:, :, None]
        across = torch.where(mirrored > 0, middles.flip(0), middles)
        x_BS, y_BS = left + (right - left) * across, top + (bottom - top) * middles
        shape = (len(x_BS), self.side, self.side)
        places = torch.stack([x_BS[:, None].expand(shape), y_BS[:, :, None].expand(shape)], dim=-1)
        read = grid_sample(
            maps.to(device).float(), 2 * places - 1, padding_mode="border", align_corners=False
        )
        return read.flatten(2).transpose(1, 2)

    def _map(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        number, row = divmod(index, IMAGES)
        held = np.load(self._file(number), mmap_mode="r", allow_pickle=False)
        return np.array(held[row])

    def _write(self, number: int) -> None:
        indices = range(number * IMAGES, min((number + 1) * IMAGES, len(self.source)))
        size = (self.teacher.image_size, self.teacher.image_size)
        squares = [
            np.asarray(self.source.image(index).resize(size, Image.Resampling.BICUBIC))
            for index in indices
        ]
        maps = self.teacher.map(normalize(np.stack(squares)).to(this_worker().device))
        # A name of its own until it is whole: others, on other machines too, may write the same.
        written = self._file(number).with_suffix(f".{token_hex(4)}.npy")
        np.save(written, maps.cpu().half().numpy(), allow_pickle=False)
        written.replace(self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.npy"

    def _require_room(self) -> None:
        there = self.folder
        while not there.exists():
            there = there.parent
        cells = (self.side * self.teacher.cells) ** 2
        needed = 2 * len(self.source) * cells * self.teacher.width
        held = sum(file.stat().st_size for file in self.folder.glob("*.npy"))
        free = shutil.disk_usage(there).free
        if needed - held > free:
            raise UnreachableError(
                f"The teacher's features of {len(self.source)} images need "
                f"{needed / 2**30:.1f} GiB, but {there} has {free / 2**30:.1f} GiB free. Set "
                "XDG_CACHE_HOME to a folder with room, or leave target.precompute out."
            )
