"""Classes of blended pixels at the soft edges of a label map stored in colours.

A blend of two class colours may equal or resemble a third class colour: blends of hair and
background include the colour of the lower lip. The colour of a pixel alone therefore does not
determine its class. A class is certain in and beside 3 x 3 blocks of pixels of its colour. Any
other pixel whose colour is a blend of two certain classes near it gets one of these two. A pixel
without a class colour gets that class among the certain ones near it whose colour is nearest.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from scipy import ndimage

SURE = 20.0
"""Largest distance in RGB at which a colour counts as a class colour with compression noise."""
_AROUND = 4
"""Pixels to each side of a blended pixel among which its class is searched."""
_BLOCK = 2**18
"""Pixels that are processed at a time."""
_OF_AREA = 2
"""Pixels to each side of a certain area that also get its class if their colour fits."""


@dataclasses.dataclass(frozen=True)
class Settled:
    """Pixels whose class is determined by the classes around them, in reading order."""

    y: Int[np.ndarray, "n"]
    x: Int[np.ndarray, "n"]
    labels: UInt8[np.ndarray, "n"]
    distances: Float32[np.ndarray, "n"]
    """RGB distances of their colours to their class colours; infinite if no class is around."""


def settle(
    rgb: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "h w"],
    sure: Bool[np.ndarray, "h w"],
    certain: Bool[np.ndarray, "h w"],
    colours: Float32[np.ndarray, "256 3"],
) -> Settled:
    """Find the classes of blended pixels.

    Args:
      rgb: the picture.
      labels: the class with the nearest colour, for every pixel.
      sure: whether that colour is at most `SURE` away.
      certain: result of `certain`.
      colours: class colours by label.
    """
    y, x = np.nonzero(sure & ~certain)
    blended = np.zeros_like(sure)
    for some in _blocks(len(y)):
        blended[y[some], x[some]] = _is_blend(rgb, labels, certain, colours, y[some], x[some])
    seeds = sure & ~blended
    y, x = np.nonzero(~seeds)
    taken, nearest = labels[y, x], np.full(len(y), np.inf, np.float32)
    for some in _blocks(len(y)):
        taken[some], nearest[some] = _nearest(rgb, labels, seeds, colours, y[some], x[some])
    return Settled(y, x, taken, nearest)


def _blocks(count: int) -> Iterator[slice]:
    """Slices of `count` pixels, which bound the memory."""
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


def _nearest(
    rgb: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "h w"],
    seeds: Bool[np.ndarray, "h w"],
    colours: Float32[np.ndarray, "256 3"],
    y: Int[np.ndarray, "n"],
    x: Int[np.ndarray, "n"],
) -> tuple[UInt8[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """Find the surrounding seed whose class colour is nearest to each pixel's colour.

    Returns its label and its distance in RGB, which is infinite for a pixel without a seed.
    """
    wanted = rgb[y, x].astype(np.float32)
    taken, nearest = labels[y, x], np.full(len(y), np.inf, np.float32)
    for beside in _around(labels, y, x):
        label = labels[beside]
        distance = np.linalg.norm(wanted - colours[label], axis=1)
        nearer = seeds[beside] & (distance < nearest)
        nearest[nearer], taken[nearer] = distance[nearer], label[nearer]
    return taken, nearest


def certain(
    labels: UInt8[np.ndarray, "h w"], sure: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Whether a pixel is sure, and within or beside 3 x 3 pixels of its class."""
    square = {"size": 3, "mode": "nearest"}
    alike = ndimage.minimum_filter(labels, **square) == ndimage.maximum_filter(labels, **square)
    core = alike & ndimage.minimum_filter(sure, **square)
    result = np.zeros_like(sure)
    for label in np.unique(labels[core]):
        own = labels == label
        result |= sure & own & ndimage.maximum_filter(core & own, size=2 * _OF_AREA + 1)
    return result


def _is_blend(
    rgb: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "h w"],
    certain: Bool[np.ndarray, "h w"],
    colours: Float32[np.ndarray, "256 3"],
    y: Int[np.ndarray, "n"],
    x: Int[np.ndarray, "n"],
) -> Bool[np.ndarray, "n"]:
    """Whether the colours of these pixels lie between those of two other classes around them."""
    classes = np.unique(labels[certain])
    column = np.zeros(256, np.intp)
    column[classes] = np.arange(len(classes))
    there = np.zeros((len(y), len(classes)), bool)
    for beside in _around(labels, y, x):
        usable = certain[beside]
        there[np.flatnonzero(usable), column[labels[beside][usable]]] = True
    there &= classes != labels[y, x][:, None]
    wanted = rgb[y, x].astype(np.float32)
    result = np.zeros(len(y), bool)
    for a, b in itertools.combinations(np.flatnonzero(there.any(axis=0)), 2):
        both = there[:, a] & there[:, b]
        start, line = colours[classes[a]], colours[classes[b]] - colours[classes[a]]
        share = ((wanted[both] - start) @ line / (line @ line)).clip(0, 1)
        off = np.linalg.norm(wanted[both] - (start + share[:, None] * line), axis=1)
        result[both] |= off <= SURE
    return result


def _around(labels: UInt8[np.ndarray, "h w"], y: np.ndarray, x: np.ndarray):
    """Yield, for each offset in order of distance, the neighbours (y, x) of all pixels."""
    steps = range(-_AROUND, _AROUND + 1)
    height, width = labels.shape
    for down, right in sorted(itertools.product(steps, steps), key=lambda s: s[0] ** 2 + s[1] ** 2):
        yield (y + down).clip(0, height - 1), (x + right).clip(0, width - 1)
