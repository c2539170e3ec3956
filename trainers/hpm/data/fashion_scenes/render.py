"""How a garment is put on a photograph: arithmetic alone, the same bytes on every machine.

All draws are 64-bit words of a Philox stream, turned into numbers here. Pixels are integers
throughout; positions are float64 with nothing but + - * / and floor, each rounded as IEEE 754 says
(no sines: an angle comes from the rational half-angle formulas). So nothing depends on a maths
library, a processor or the order of a sum.

Letters: N scenes, S side of a scene, P photograph's height and width.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_WORDS", "SIDE", "integral", "render", "silhouette"]

SIDE = 32
NUM_WORDS = 16
"""Random 64-bit words that one scene takes (the last is spare)."""

Bytes: TypeAlias = NDArray[np.uint8]
Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float64]

_GARMENT = 28
_PADDED = _GARMENT + 2
_SCALE = (0.75, 1.0)  # side of the garment's frame over the scene's
_HALF_TANGENT = 0.0874886635259240  # of 10 degrees
_ZOOM = (1.0, 3.0)  # side of the photograph's crop over the scene's
_FLOOR = (0, 128)  # brightness of a garment's black
_TINT = (64, 256)  # brightness of a garment's white, in each channel


def silhouette(garments: Bytes) -> NDArray[np.bool_]:
    """What of [N, 28, 28] grey values is garment.

    A pixel is when it lies between the first and the last one above 16, in its row and its column.
    """
    lit = garments > 16
    in_column, in_row = (_from_first_on(lit, axis) & _up_to_last(lit, axis) for axis in (1, 2))
    return in_column & in_row


def _from_first_on(lit: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    return np.logical_or.accumulate(lit, axis)


def _up_to_last(lit: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    return np.flip(_from_first_on(np.flip(lit, axis), axis), axis)


def integral(photograph: Bytes) -> Ints:
    """[P+1, P+1, 3] sums over all pixels above and left, of a photograph [P, P, 3]."""
    sums = photograph.astype(np.int32).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    return np.pad(sums, ((1, 0), (1, 0), (0, 0)))


def render(
    garments: Bytes, integrals: Sequence[Ints], words: NDArray[np.uint64]
) -> tuple[Bytes, NDArray[np.bool_]]:
    """Scenes [N, S, S, 3] and their masks [N, S, S] (True: mostly garment).

    `garments` is [N, 28, 28], `integrals` the photographs to choose from, `words` [N, NUM_WORDS].
    """
    draws = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    background, placement, colour = draws[:, :5], draws[:, 5:10], draws[:, 10:14]
    grey, alpha = _place(garments, placement)
    tinted = _tint(grey, colour)
    behind = _crop(integrals, background)
    opacity = alpha[..., None]
    scenes = (behind * (255 - opacity) + tinted * opacity + 127) // 255
    return scenes.astype(np.uint8), alpha >= 128


def _between(limits: tuple[float, float], draws: Floats) -> Floats:
    return limits[0] + (limits[1] - limits[0]) * draws


def _crop(integrals: Sequence[Ints], draws: Floats) -> Ints:
    """Crops of photographs [N, S, S, 3], each pixel the mean of a box of whole pixels."""
    which = (draws[:, 0] * len(integrals)).astype(np.int64)
    sides = _between(_ZOOM, draws[:, 1]) * SIDE
    pixels = np.empty((len(draws), SIDE, SIDE, 3), np.int32)
    for number, sums in enumerate(integrals):
        of = which == number
        side = sides[of].astype(np.int64)
        edges = np.arange(SIDE + 1) * side[:, None] // SIDE
        top, left = (
            (draw[of] * (length - side)).astype(np.int64)
            for draw, length in zip((draws[:, 2], draws[:, 3]), sums.shape, strict=False)
        )
        rows, columns = edges + top[:, None], edges + left[:, None]
        corners = sums[rows[:, :, None], columns[:, None, :]]
        areas = np.diff(rows)[:, :, None, None] * np.diff(columns)[:, None, :, None]
        totals = np.diff(np.diff(corners, axis=1), axis=2)
        pixels[of] = (totals + areas // 2) // areas
    return np.where((draws[:, 4] < 0.5)[:, None, None, None], pixels[:, :, ::-1], pixels)


def _place(garments: Bytes, draws: Floats) -> tuple[Ints, Ints]:
    """Garments' grey values and opacities, each [N, S, S] in 0..255, scaled, turned and shifted."""
    layers = np.stack([garments, silhouette(garments) * np.uint8(255)], axis=-1)
    padded = np.pad(layers, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.int32)
    rows, columns = _positions(draws)
    row, column = (np.floor(p).astype(np.int32) for p in (rows, columns))
    down, right = (
        ((p - whole) * 256).astype(np.int32)[..., None]
        for p, whole in ((rows, row), (columns, column))
    )
    flat = padded.reshape(-1, 2)
    at = row * _PADDED + column + (np.arange(len(garments)) * _PADDED**2)[:, None, None]
    above = flat[at] * (256 - right) + flat[at + 1] * right
    below = flat[at + _PADDED] * (256 - right) + flat[at + _PADDED + 1] * right
    placed = (above * (256 - down) + below * down) >> 16
    return placed[..., 0], placed[..., 1]


def _positions(draws: Floats) -> tuple[Floats, Floats]:
    """Row and column in the padded garment of each scene pixel, both [N, S, S]."""
    scale = _between(_SCALE, draws[:, 0])
    half = _between((-_HALF_TANGENT, _HALF_TANGENT), draws[:, 1])
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    room = (1 - scale) * (SIDE / 2)
    mirror = np.where(draws[:, 4] < 0.5, -1.0, 1.0)
    grid = np.arange(SIDE) - (SIDE - 1) / 2
    y = (grid - _between((-1, 1), draws[:, 2])[:, None] * room[:, None])[:, :, None]
    x = (grid - _between((-1, 1), draws[:, 3])[:, None] * room[:, None])[:, None, :]
    step = (_GARMENT / (SIDE * scale))[:, None, None]
    c, s, m = (v[:, None, None] for v in (cosine, sine, mirror))
    middle, last = (_PADDED - 1) / 2, _PADDED - 1 - 1e-6
    rows = (c * y - s * x) * step + middle
    columns = (s * y + c * x) * m * step + middle
    return np.clip(rows, 0, last), np.clip(columns, 0, last)


def _tint(grey: Ints, draws: Floats) -> Ints:
    """Grey values [N, S, S] as colours [N, S, S, 3]: a brighter black, a coloured white."""
    floor = _between(_FLOOR, draws[:, 0]).astype(np.int32)[:, None, None]
    white = _between(_TINT, draws[:, 1:4]).astype(np.int32)[:, None, None, :]
    shade = floor + (255 - floor) * grey // 255
    return shade[..., None] * white // 255
