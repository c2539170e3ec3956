"""The paper's pictures, from what a run saw: nothing is computed here that is not drawn.

Each panel is a picture for every look: a line for each image with the image, the reconstruction's
loss averaged over masks, the loss that is predicted, the masked image (grey: chosen by the guide,
black: at random) and, where pixels are the target, the reconstruction (paper, Figures 2 and 3).
Letters: I images, P lines, N patches, S side of an image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hpm.watch import Look, Watch

__all__ = ["heat_map", "write_figures"]

Bytes: TypeAlias = NDArray[np.uint8]

_SHOWN = 112
"""Least side of an image in a panel, in pixels."""
_GAP = 4
_TITLE = 16
_GREY = 128
_MILLISECONDS = 700
"""Of one look in the animation."""


def heat_map(values_N: NDArray[np.float32]) -> Bytes:
    """Colours [n, n, 3] of a square of values, as the authors draw predicted losses.

    Sigmoid of the value less the mean, over its maximum, in the colours that OpenCV calls JET
    (issue 3 of the official repository). A value that is not known is white.
    """
    known = ~np.isnan(values_N)
    shifted = np.where(known, values_N, 0) - (values_N[known].mean() if known.any() else 0)
    share = 1 / (1 + np.exp(-shifted.astype(np.float64)))
    share = share / (share[known].max() if known.any() else 1)
    channels = [np.clip(1.5 - np.abs(4 * share - peak), 0, 1) for peak in (3, 2, 1)]
    colours = np.where(known[:, None], np.stack(channels, axis=1), 1.0)
    side = round(len(values_N) ** 0.5)
    return (colours * 255).round().astype(np.uint8).reshape(side, side, 3)


def write_figures(folder: Path, watch: Watch) -> None:
    """Write what was seen into a folder that this makes.

    A panel for each look, the predicted loss through training as one sheet and as an animation, and
    all the numbers as `hardness.npz`.
    """
    if not watch.looks:
        return
    folder.mkdir()
    _write_numbers(folder / "hardness.npz", watch)
    pixels = watch.pixels_ISS3.numpy()[: watch.config.watch.panels]
    for look in watch.looks:
        _panel(pixels, look).save(folder / f"panel-step-{look.step:07}.png")
    if watch.looks[-1].predicted_IN is not None:
        _sheet(pixels, watch.looks).save(folder / "predicted-loss.png")
        first, *others = [_sheet(pixels, [look]) for look in watch.looks]
        first.save(
            folder / "predicted-loss.gif",
            save_all=True,
            append_images=others,
            duration=_MILLISECONDS,
            loop=0,
        )


def _write_numbers(file: Path, watch: Watch) -> None:
    looks = watch.looks
    arrays = {
        "steps": np.array([look.step for look in looks]),
        "true": np.stack([look.true_IN.numpy() for look in looks]),
        "chosen": np.stack([look.chosen_PN.numpy() for look in looks]),
    }
    if looks[-1].predicted_IN is not None:
        arrays["predicted"] = np.stack([_known(look) for look in looks])
    if watch.foreground_IN is not None:
        arrays["foreground"] = watch.foreground_IN
    np.savez_compressed(file, allow_pickle=False, **arrays)


def _panel(pixels_PSS3: Bytes, look: Look) -> Image.Image:
    columns: dict[str, Sequence[Bytes]] = {"image": list(pixels_PSS3)}
    # Losses differ by little where predictions differ by about 1, so they are brought to that.
    true_IN = look.true_IN.numpy()
    spread_I1 = np.nanstd(true_IN, axis=1, keepdims=True)
    columns["loss"] = [heat_map(line) for line in true_IN / np.maximum(spread_I1, 1e-12)]
    if look.predicted_IN is not None:
        columns["predicted"] = [heat_map(line) for line in look.predicted_IN.numpy()]
    masks = look.chosen_PN.numpy()
    columns["mask"] = [_masked(*pair) for pair in zip(pixels_PSS3, masks, strict=True)]
    if look.rebuilt_PSS3 is not None:
        columns["rebuilt"] = list(look.rebuilt_PSS3.numpy())
    return _table(columns, lines=len(pixels_PSS3))


def _sheet(pixels_PSS3: Bytes, looks: Sequence[Look]) -> Image.Image:
    """The predicted loss of each image, a column for each look."""
    columns: dict[str, Sequence[Bytes]] = {"image": list(pixels_PSS3)}
    for look in looks:
        columns[f"step {look.step}"] = [heat_map(line) for line in _known(look)]
    return _table(columns, lines=len(pixels_PSS3))


def _known(look: Look) -> NDArray[np.float32]:
    assert look.predicted_IN is not None
    values: NDArray[np.float32] = look.predicted_IN.numpy()
    return values


def _masked(pixels_SS3: Bytes, chosen_N: NDArray[np.int8]) -> Bytes:
    side = round(len(chosen_N) ** 0.5)
    patch = len(pixels_SS3) // side
    chosen = chosen_N.reshape(side, side).repeat(patch, axis=0).repeat(patch, axis=1)[:, :, None]
    hidden: Bytes = np.where(chosen == 2, np.uint8(_GREY), np.uint8(0))
    return np.where(chosen == 0, pixels_SS3, hidden)


def _table(columns: dict[str, Sequence[Bytes]], *, lines: int) -> Image.Image:
    """Titled columns of square pictures, all enlarged to one size without smoothing."""
    size = max(_SHOWN, *(len(column[0]) for column in columns.values()))
    step = size + _GAP
    sheet = Image.new("RGB", (step * len(columns) - _GAP, _TITLE + step * lines - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (title, column) in enumerate(columns.items()):
        draw.text((x * step + 2, 2), title, fill="black")
        for y, picture in enumerate(column[:lines]):
            enlarged = Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x * step, _TITLE + y * step))
    return sheet
