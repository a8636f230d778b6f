"""Noise in label maps: what careless or automatic segmentation does to a mask.

Four kinds of noise, each with a strength from 0 to 1:

  jitter      boundaries follow a smooth random flow field
  morphology  every class is dilated or eroded by a disc, at even odds
  polygons    the outline of every connected region becomes a polygon with few corners (algorithm of
              Douglas and Peucker)
  salt        cells of a grid get wrong labels

ABOUT has their lengths and shares at strength 1, which smaller strengths scale. Lengths are shares
of the shorter side of the map, so that one strength spoils maps of all sizes alike. Random numbers
depend on the seed and the kind only: another strength scales the same noise, and several kinds are
the same as one after the other.

All of this is our choice. CA2-SIS (arXiv 2308.16071) is said to be robust to noise in masks; which
noise its authors used is not known here, and their published code has none.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import no_type_check

import numpy as np
from jaxtyping import Int64, UInt8
from scipy import ndimage
from skimage.draw import polygon
from skimage.measure import find_contours

from sisma_jax.common.errors import InputError, did_you_mean
from sisma_jax.data.classes import UNLABELLED

FARTHEST = 0.08
"""Displacement that no pixel exceeds in either direction, as a share of the side."""
DEVIATION = 151 / 315 / 3**0.5
"""Standard deviation of the displacements as a share of FARTHEST: that of even draws in [-1, 1],
times the mean sum of the squared weights of a cubic B-spline, 151 / 315."""
KNOTS = 8
"""Knots of the flow field on a side; between them it is a cubic B-spline."""
RADIUS = 0.04
"""Largest radius by which a class is dilated or eroded, as a share of the side."""
TO_EDGE = 0.5
"""Pixels from the centre of a pixel to its edge, where the boundary of a class lies."""
TOLERANCE = 0.04
"""Largest distance of a polygon from the outline, as a share of the side."""
OF_ROOT_AREA = 0.25
"""The same as a share of the root of a region's area, so that small regions do not vanish."""
CELLS = 64
"""Cells of salt on a side."""
SALTED = 0.2
"""Share of cells with wrong labels."""
UNIT = 2**15
"""Number that stands for 1 in whole numbers, whose sums are the same on every machine."""
Labels = UInt8[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class MaskNoise:
    """Some kinds of noise at one strength.

    Raises:
      InputError: no kind, an unknown kind, a kind twice, or a strength outside of [0, 1].
    """

    kinds: tuple[str, ...]
    """Names in KINDS, which act and are kept in its order."""
    strength: float | int
    """A number in [0, 1]; 0 leaves a map as it is."""

    def __post_init__(self) -> None:
        check_kinds(self.kinds)
        if not 0 <= self.strength <= 1:  # also NaN
            raise InputError(f"the strength of mask noise is {self.strength:g}: use 0 to 1")
        in_order = tuple(kind for kind in KINDS if kind in self.kinds)
        object.__setattr__(self, "kinds", in_order)

    @no_type_check  # wrong arguments raise InputError
    def __call__(self, labels: Labels, *, classes: int, seed: int | Sequence[int]) -> Labels:
        """Return the label map with noise.

        Unlabelled pixels stay so, and no other pixel becomes one. The same arguments give the same
        map on every machine, as far as the versions of NumPy draw the same numbers.

        Args:
          labels: ids below `classes`, and 255 (unlabelled).
          classes: number of classes, from which salt takes wrong labels.
          seed: of this map, one number or several, such as a seed and the index of the map.

        Raises:
          InputError: the map is not of shape (h, w) and type uint8, is empty, or has an id that is
            no class; or a seed is no whole number of at least 0.
        """
        labels = np.asarray(labels)
        _check_map(labels, classes)
        _check_seed(seed)
        if self.strength == 0:
            return labels
        known = labels != UNLABELLED
        seeds = np.atleast_1d(seed).tolist()
        for number, (kind, add) in enumerate(KINDS.items()):
            if kind in self.kinds:
                rng = np.random.default_rng([*seeds, number])
                noisy = add(labels, float(self.strength), rng, classes)
                labels = np.where(known & (noisy != UNLABELLED), noisy, labels)
        return labels


def _check_map(labels: np.ndarray, classes: int) -> None:
    if labels.ndim != 2 or not labels.size or labels.dtype != np.uint8:
        raise InputError(
            f"mask noise is added to one label map, but there is an array of shape {labels.shape} "
            f"and type {labels.dtype}: give uint8 of shape (height, width)"
        )
    others = np.setdiff1d(labels, [*range(classes), UNLABELLED])
    if others.size:
        raise InputError(
            f"the label map has the id {others[0]}, but classes is {classes}: give the number of "
            "all classes"
        )


@no_type_check
def _check_seed(seed: int | Sequence[int]) -> None:
    numbers = np.atleast_1d(seed)
    if not np.issubdtype(numbers.dtype, np.integer) or (numbers < 0).any():
        raise InputError(f"the seed of mask noise is {seed}: give whole numbers of at least 0")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises InputError unless these are different names in KINDS."""
    if isinstance(kinds, str):
        raise InputError(f"the kinds of mask noise are {kinds!r}: give a tuple, ({kinds!r},)")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                f"mask noise {kind!r} is unknown: "
                + did_you_mean(kind, KINDS, f"use some of {', '.join(KINDS)}")
            )
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(
            f"mask noise {'+'.join(kinds)!r} has no kind, or one twice: combine different ones of "
            f"{', '.join(KINDS)}"
        )


def jitter(labels: Labels, strength: float, rng: np.random.Generator, classes: int) -> Labels:
    """Every pixel takes the label of the pixel to which the flow field points."""
    height, width = labels.shape
    side = min(height, width)
    shape = 2, _knots(height, side), _knots(width, side)
    knots = rng.integers(-UNIT, UNIT, shape, endpoint=True)
    flow = _spline(height, side) @ knots @ _spline(width, side).T
    # A B-spline stays within its knots, so that this is at most FARTHEST.
    shift = np.rint(flow * (strength * FARTHEST * side / UNIT**3)).astype(np.int64)
    y = (np.arange(height)[:, None] + shift[0]).clip(0, height - 1)
    x = (np.arange(width) + shift[1]).clip(0, width - 1)
    return labels[y, x]


def _spline(length: int, side: int) -> Int64[np.ndarray, "length knots"]:
    """Weights of the knots of a uniform cubic B-spline at every pixel, in units of 1 / UNIT."""
    one = 2 * side
    first, t = np.divmod((2 * np.arange(length) + 1) * KNOTS, one)
    pieces = (
        (one - t) ** 3,
        3 * t**3 - 6 * t**2 * one + 4 * one**3,
        3 * (t * one**2 + t**2 * one - t**3) + one**3,
        t**3,
    )
    weights = np.zeros((length, _knots(length, side)), np.int64)
    for k, piece in enumerate(pieces):
        weights[np.arange(length), first + k] = piece * UNIT // (6 * one**3)
    return weights


def _knots(length: int, side: int) -> int:
    """The number of knots that a spline over `length` pixels has."""
    return -(-length * KNOTS // side) + 3


def morphology(labels: Labels, strength: float, rng: np.random.Generator, classes: int) -> Labels:
    """One class after the other, in random order, grows over its neighbours or shrinks."""
    side = min(labels.shape)
    labels = labels.copy()
    order = rng.permutation(UNLABELLED)
    radii = (2 * rng.random(UNLABELLED) - 1) * (RADIUS * strength * side)
    for label in order[np.isin(order, labels)]:
        radius = radii[label]
        boxes = ndimage.find_objects((labels == label).astype(np.uint8))
        if not boxes:
            continue  # others have grown over all of it
        margin = int(abs(radius)) + 1
        around = tuple(slice(max(one.start - margin, 0), one.stop + margin) for one in boxes[0])
        part = labels[around]
        own = part == label
        if radius > 0:
            grown = ndimage.distance_transform_edt(~own) - TO_EDGE <= radius
            part[grown & (part != UNLABELLED)] = label
        elif (others := ~own & (part != UNLABELLED)).any():
            distance, nearest = ndimage.distance_transform_edt(~others, return_indices=True)
            lost = own & (distance - TO_EDGE <= -radius)
            part[lost] = part[tuple(nearest)][lost]
    return labels


def polygons(labels: Labels, strength: float, rng: np.random.Generator, classes: int) -> Labels:
    """Outlines of connected regions become polygons, drawn from the largest to the smallest.

    Pixels in none of them take the label of the nearest pixel in one.
    """
    tolerance = strength * TOLERANCE * min(labels.shape)
    regions = []
    for label in np.setdiff1d(labels, [UNLABELLED]):
        numbered, _ = ndimage.label(labels == label)
        for number, around in enumerate(ndimage.find_objects(numbered), 1):
            # A margin closes the outline of a region at the border.
            region = np.pad(numbered[around] == number, 1)
            region = ndimage.binary_fill_holes(region)
            corner = np.array([one.start - 1 for one in around])
            regions.append((int(region.sum()), label, corner, region))
    noisy = np.full_like(labels, UNLABELLED)
    for area, label, corner, region in sorted(regions, key=lambda one: -one[0]):
        outline = max(find_contours(region, 0.5), key=len)[:-1]
        outline = np.roll(outline, rng.integers(len(outline)), axis=0)
        away = min(tolerance, OF_ROOT_AREA * area**0.5)
        # Points are halfway between pixels: whole numbers of halves.
        kept = _corners((2 * outline).astype(np.int64), 2 * away)
        noisy[polygon(*(outline[kept] + corner).T, labels.shape)] = label
    empty = noisy == UNLABELLED
    if empty.all():
        return labels
    nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    return noisy[tuple(nearest)]


def _corners(outline: Int64[np.ndarray, "n 2"], away: float) -> list[int]:
    """Indices of the points that the algorithm of Douglas and Peucker keeps of a closed line.

    Many distances are equal. As whole numbers they are equal on every machine, so that every
    machine keeps the first of them.
    """
    count = len(outline)
    farthest = int(np.square(outline - outline[0]).sum(1).argmax())
    kept, parts = {0, farthest}, [(0, farthest), (farthest, count)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        between = outline[first + 1 : last] - outline[first]
        chord = outline[last % count] - outline[first]
        offset = np.abs(between[:, 0] * chord[1] - between[:, 1] * chord[0])
        largest = int(offset.argmax())
        if int(offset[largest]) ** 2 > away**2 * int(chord @ chord):
            middle = first + 1 + largest
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    return sorted(kept)


def salt(labels: Labels, strength: float, rng: np.random.Generator, classes: int) -> Labels:
    """The labels of some cells are exchanged for other ones of all classes, each as likely."""
    if classes == 1:
        return labels
    side = min(labels.shape)
    y, x = (np.arange(length) * CELLS // side for length in labels.shape)
    salted = rng.random((y[-1] + 1, x[-1] + 1)) < strength * SALTED
    further = rng.integers(1, classes, salted.shape)
    cell = np.ix_(y, x)
    wrong = (labels + further[cell]) % classes
    return np.where(salted[cell] & (labels != UNLABELLED), wrong, labels).astype(np.uint8)


KINDS: dict[str, Callable[[Labels, float, np.random.Generator, int], Labels]] = {
    "jitter": jitter,
    "morphology": morphology,
    "polygons": polygons,
    "salt": salt,
}
"""Kinds of noise by name, in the order in which they act."""

ABOUT = {
    "jitter": (
        "boundaries are displaced by a smooth random flow field, in either direction by "
        f"{100 * FARTHEST * DEVIATION:.1f} % of the shorter side (standard deviation)"
    ),
    "morphology": (
        "classes are dilated or eroded by discs with radii drawn evenly up to "
        f"{RADIUS:.0%} of the shorter side"
    ),
    "polygons": (
        f"outlines of regions become polygons at most {TOLERANCE:.0%} of the shorter side, and "
        f"{OF_ROOT_AREA:.0%} of the root of the region's area, away from them"
    ),
    "salt": (f"of the cells of a grid, {CELLS} on the shorter side, {SALTED:.0%} get wrong labels"),
}
"""What each kind of noise is at strength 1."""
