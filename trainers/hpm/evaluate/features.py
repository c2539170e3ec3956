"""Frozen features: what an exported encoder makes of every image of a split.

Batches of one constant size are dealt to the workers and gathered in index order, so the features
are the same bits for any number of workers. Letters: B images of a batch, N of a split, D width.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from hpm.config import Data, Encoder, Role
from hpm.data.errors import DataError
from hpm.data.loading import Batch, EvaluationViews
from hpm.data.source import Source
from hpm.distributed import this_worker
from hpm.evaluate.config import EvalData
from hpm.evaluate.dealing import deal
from hpm.evaluate.room import require_room
from hpm.weights import Description, load_encoder

__all__ = [
    "BATCH",
    "Features",
    "FrozenEncoder",
    "Pool",
    "export_pixels",
    "load_frozen",
    "require_encoder",
]

Pool: TypeAlias = Literal["cls", "mean"]

BATCH = 128
"""Images of one pass. Part of the numbers: a matrix product's last bits depend on its shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenEncoder:
    """A function from images to features, and the images that it takes."""

    data: Data
    width: int
    device: torch.device
    function: Callable[[Tensor], Tensor]

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, D], float32, on the encoder's device, in passes of constant size."""
        parts = torch.split(images_BCHW, BATCH)
        with torch.inference_mode():
            rows_BD = torch.cat([self.function(part.to(self.device)) for part in parts])
        # A tensor that was born in inference mode could not enter a probe's backward pass.
        return rows_BD.clone()


def export_pixels(folder: Path, data: Data) -> None:
    """Write the description of the encoder that is none: features are the image's own pixels."""
    document = {"encoder": "pixels", "data": asdict(data)}
    (folder / "encoder.json").write_text(json.dumps(document, indent=2) + "\n")


def require_encoder(folder: Path, role: Role, *, evaluation: str) -> Description:
    """What the exported encoder is; `evaluation` is named where it cannot be done.

    Raises:
        DataError: pixels were exported, or there is no encoder of this role.
    """
    document = json.loads((folder / "encoder.json").read_text())
    if document["encoder"] == "pixels":
        raise DataError(
            f"{evaluation} needs an encoder, but the pixels reference has none. Leave pixels out "
            f"of the study's references, or {evaluation} out of its evaluations."
        )
    if not (folder / f"{role}.safetensors").exists():
        raise DataError(
            f"{evaluation} with role {role} needs a pretraining that has a {role}, but this one "
            "exported none (references and plain MAE have no teacher). Set role: student."
        )
    return Description(Encoder(**document["encoder"]), Data(**document["data"]))


def load_frozen(
    folder: Path, *, data: EvalData | None, pool: Pool, role: Role = "student"
) -> FrozenEncoder:
    """The exported encoder, pooled after its last norm, or the pixels where those were exported.

    `data` None means the images that it was trained on; others are brought to the same size.

    Raises:
        DataError: there is no encoder of this role; pixels have any.
    """
    device = this_worker().device
    document = json.loads((folder / "encoder.json").read_text())
    if document["encoder"] == "pixels":
        images = _images(Data(**document["data"]), data)
        width = 3 * images.image_size**2
        return FrozenEncoder(data=images, width=width, device=device, function=_flatten)
    require_encoder(folder, role, evaluation="An evaluation")
    encoder, description = load_encoder(folder, role=role)
    encoder.to(device)

    def pooled(images_BCHW: Tensor) -> Tensor:
        tokens: Tensor = encoder(images_BCHW)
        return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)

    images = _images(description.data, data)
    width = description.encoder.width
    return FrozenEncoder(data=images, width=width, device=device, function=pooled)


def _images(trained: Data, other: EvalData | None) -> Data:
    if other is None:
        return trained
    return replace(trained, name=other.name, min_crop=other.min_crop, flip=other.flip)


def _flatten(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.flatten(1)


@final
class Features:
    """The features and labels of one split, of which the first `filled` images are there.

    Raises:
        DataError: the features of the split need more than 16 GiB.
    """

    def __init__(self, source: Source, width: int) -> None:
        require_room(len(source), width)
        self.source = source
        self.filled = 0
        self.rows_ND = torch.zeros(len(source), width)
        self.labels_N = torch.zeros(len(source), dtype=torch.int64)

    @property
    def steps(self) -> int:
        """Batches of the split."""
        return -(-len(self.source) // BATCH)

    @property
    def done(self) -> int:
        """Batches that are there."""
        return -(-self.filled // BATCH)

    def fill(self, encoder: FrozenEncoder, *, loaders: int) -> Iterator[None]:
        """Add what is missing, and stop for a moment after each batch."""

        def encoded(batch: Batch) -> tuple[Tensor, ...]:
            return encoder.encode(batch.images), batch.labels

        made = deal(
            EvaluationViews(self.source, encoder.data.image_size),
            encoded,
            nothing=(torch.zeros(0, encoder.width), torch.zeros(0, dtype=torch.int64)),
            images=len(self.source),
            batch_size=BATCH,
            done=self.done,
            loaders=loaders,
        )
        for rows_BD, labels_B in made:
            self._append(rows_BD, labels_B)
            yield

    def state(self) -> dict[str, Tensor]:
        """What is there, for `restore`."""
        return {
            "rows": self.rows_ND[: self.filled].clone(),
            "labels": self.labels_N[: self.filled].clone(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Start from what an earlier `state` held."""
        self.filled = 0
        self._append(state["rows"], state["labels"])

    def _append(self, rows_BD: Tensor, labels_B: Tensor) -> None:
        end = self.filled + len(rows_BD)
        self.rows_ND[self.filled : end] = rows_BD
        self.labels_N[self.filled : end] = labels_B
        self.filled = end
