"""Smooth outlines and the canvas they are filled on.

Points are float arrays (n, 2) of x, y in picture coordinates: x runs right and y down, both from
-1 to 1 over the picture, whatever its size in pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

Points = Float[np.ndarray, "_ 2"]

Corners = Sequence[tuple[float | int, ...]] | np.ndarray
"""Control points (n, k) as written down; the first two columns are x and y."""

OVERSAMPLING = 4
"""Canvas pixels per picture pixel: Pillow rounds polygon corners to whole pixels."""

_STEPS = 8


@lru_cache(maxsize=64)
def _catmull_rom(count: int, closed: bool) -> np.ndarray:
    """Matrix that maps `count` control points to points on the Catmull-Rom spline through them."""
    t = np.arange(_STEPS)[:, None] / _STEPS
    basis = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], 1
    )
    segments = count if closed else count - 1
    matrix = np.zeros((segments * _STEPS + (not closed), count))
    for segment in range(segments):
        rows = slice(segment * _STEPS, (segment + 1) * _STEPS)
        for k in range(4):
            neighbour = segment + k - 1
            column = neighbour % count if closed else min(max(neighbour, 0), count - 1)
            matrix[rows, column] += basis[:, k]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def smooth(points: Corners, closed: bool = True) -> Float[np.ndarray, "m k"]:
    """The spline through `points` (n, k) as a dense polyline; columns past x and y go along."""
    points = np.asarray(points, np.float64)
    return _catmull_rom(len(points), closed) @ points


def mirrored(half: Corners) -> Float[np.ndarray, "m k"]:
    """Control points of a symmetric outline from its right half, listed from top to bottom.

    Points on the axis (x = 0) are not doubled; columns past x and y are kept.
    """
    left = np.array(half, np.float64)[::-1]
    left[:, 0] *= -1
    return np.concatenate([half, left[left[:, 0] != 0]])


@lru_cache(maxsize=8)
def _unit_circle(count: int) -> np.ndarray:
    angle = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """Polygon of an axis-aligned ellipse."""
    return _unit_circle(48) * (rx, ry) + (x, y)


def ribbon(line: Points, width: float | np.ndarray) -> Points:
    """Polygon of a stroke along `line`; `width` is one number or one per point of the line."""
    offset = np.empty_like(line)
    offset[1:-1] = line[2:, ::-1] - line[:-2, ::-1]
    offset[0], offset[-1] = line[1, ::-1] - line[0, ::-1], line[-1, ::-1] - line[-2, ::-1]
    length = np.hypot(offset[:, 0], offset[:, 1]) + 1e-9
    offset *= (width / (2 * length))[:, None]
    offset[:, 0] *= -1
    return np.concatenate([line + offset, (line - offset)[::-1]])


class Canvas:
    """A one-channel drawing, `OVERSAMPLING` times as fine as the picture of `size` pixels."""

    def __init__(self, size: int):
        self._half = size * OVERSAMPLING / 2
        self._image = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def fill(self, polygon: Points, value: int) -> None:
        self._draw.polygon(((polygon + 1) * self._half).ravel().tolist(), fill=value)

    def samples(self) -> UInt8[np.ndarray, "m m"]:
        """Values at twice the picture's resolution, one canvas pixel each."""
        return np.asarray(self._image)[1::2, 1::2]

    def coverage(self) -> Float[np.ndarray, "m m"]:
        """Values over 255 at twice the picture's resolution, averaged."""
        return np.asarray(self._image.reduce(2), np.float32) / 255
