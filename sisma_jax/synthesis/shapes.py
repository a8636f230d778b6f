"""Shapes of parts from other masks, and shapes between those of two masks.

    masks = transfer(synthesizer, labels, other, ["hair"])        # the hair has the other's shape
    masks = transfer(synthesizer, labels, other, ["hair"], 0.5)   # a shape between the two
    masks = transfer(synthesizer, labels, other, share=0.5)       # all classes
    faces = synthesizer(masks, style=synthesizer.style(photos, labels))

CA2-SIS (arXiv 2308.16071) reads one channel per class, and a class's code is linear in its channel.
So channels are exchanged or interpolated, and nothing else changes: a part may overlap another one,
and pixels may be left without a class. This is how the published code does it.

Other models draw from label maps, in which every pixel has one class. For them the mask is repaired
(our choice): a part's own pixels take the nearest of the classes that stay, small ones aside, and
the part is painted over them in its new shape. A shape between two is where the interpolated signed
distance to their boundaries is positive (shape-based interpolation: Raya and Udupa, IEEE
Transactions on Medical Imaging 9, 1990). If two shapes overlap more with one centre than where they
are, the shape also moves from one place to the other: an eye does, long hair does not.

Of named parts, those that only one of the two masks has stay as they are.
"""

from collections.abc import Iterable
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED, ClassSet
from sisma_jax.models.generators import generator
from sisma_jax.synthesis.soft_masks import SoftMasks, classes_shown, shown_in
from sisma_jax.synthesis.styles import chosen_classes
from sisma_jax.synthesis.synthesizer import Synthesizer

LEAST_FILLING = 0.05
"""Smallest size of a class, as a share of the area that parts leave, that fills it: hair that goes
leaves its place to background and skin, and no earring grows over it."""
Labels = UInt8[np.ndarray, "n H W"]
Others = UInt8[np.ndarray, "m H W"]
Part = Bool[np.ndarray, "H W"]
Distance = Float[np.ndarray, "H W"]


@no_type_check  # wrong arguments raise InputError
def transfer(
    synthesizer: Synthesizer,
    labels: Labels | SoftMasks,
    other: Others,
    names: Iterable[str] | None = None,
    share: float = 1.0,
    *,
    repair: bool = False,
    parts_of: Labels | None = None,
) -> Labels | SoftMasks:
    """Return masks whose parts have the shapes of other masks, for this synthesizer.

    Args:
      synthesizer: the model that will draw them.
      labels: n masks: uint8 class ids, 255 where unlabelled, or what this function returned.
      other: 1 or n masks that the shapes are taken from.
      names: classes whose shape is taken where both masks have them; None for all classes, also
        those that one of the two masks lacks.
      share: share of the other shape, in [0, 1]; in between, shapes are interpolated.
      repair: return repaired label maps also for a model that draws from channels.
      parts_of: the masks that say which classes there are, before other parts of them got another
        shape; None for `labels`. A new part may cover another one, whose shape is still to come.

    Returns:
      Masks that the synthesizer and `edit` take: soft masks for a model that draws from channels,
      otherwise label maps.

    Raises:
      InputError: if masks do not fit the model or each other, a name is no class, no mask has a
        class of `names`, or the share is out of range.
    """
    check_share("share", share)
    soft = generator(synthesizer.config).soft_masks and not repair
    (synthesizer.check_masks if soft else synthesizer.check_labels)(labels)
    synthesizer.check_labels(other, "other masks")
    if len(other) not in (1, len(labels)):
        raise InputError(
            f"{len(other)} other masks do not fit {len(labels)} masks: give one for all, or one "
            "each"
        )
    own = labels if parts_of is None else parts_of
    moved = _moved(synthesizer.classes, own, other, None if names is None else list(names))
    other = np.broadcast_to(other, (len(labels), *other.shape[1:]))
    if soft:
        masks = labels if isinstance(labels, SoftMasks) else SoftMasks(labels, ())
        return masks.mix(other, np.where(moved, share, 0).astype(np.float32))
    rows = [
        _whole(own, their, share)
        if names is None
        else _repaired(own, their, np.flatnonzero(parts), share)
        for own, their, parts in zip(labels, other, moved, strict=True)
    ]
    return np.stack(rows) if rows else labels


@no_type_check
def check_share(name: str, share: float) -> None:
    """Raises InputError, with this name, unless a share of another shape is in [0, 1]."""
    if isinstance(share, bool) or not isinstance(share, int | float | np.number):
        raise InputError(f"{name} is {share!r}: use a number from 0 to 1")
    if not 0 <= share <= 1:
        raise InputError(
            f"{name} is {share:g}: use 0 (the mask's own shape) to 1 (that of the other mask)"
        )


def _moved(
    classes: ClassSet, labels: Labels | SoftMasks, other: Others, names: list[str] | None
) -> Bool[np.ndarray, "n k"]:
    """Which classes of which masks get another shape."""
    if names is None:
        return np.ones((len(labels), len(classes)), bool)
    chosen = chosen_classes(classes, names)
    own, theirs = shown_in(labels, len(classes)), classes_shown(other, len(classes))
    for name in names if len(labels) else ():
        k = classes.names.index(name)
        for shown, which in ((own, "mask to change"), (theirs, "other mask")):
            if not shown[:, k].any():
                raise InputError(
                    f"no {which} has a pixel of {name}, whose shape is asked for: name parts that "
                    "both masks have"
                )
    return own & theirs & chosen


def _repaired(
    own: UInt8[np.ndarray, "H W"],
    other: UInt8[np.ndarray, "H W"],
    ids: np.ndarray,
    share: float,
) -> UInt8[np.ndarray, "H W"]:
    """A mask in which the classes `ids`, which both masks have, get another shape."""
    if not ids.size:
        return own
    removed = np.isin(own, ids)
    filled = own.copy()
    present, areas = np.unique(own[~removed & (own != UNLABELLED)], return_counts=True)
    if present.size:
        large = areas >= min(LEAST_FILLING * removed.sum(), areas.max())
        fills = ~removed & np.isin(own, present[large])
        nearest = ndimage.distance_transform_edt(
            ~fills, return_distances=False, return_indices=True
        )
        filled[removed] = own[tuple(nearest)][removed]
    for k, field in _from_large_to_small(own, other, ids, share):
        filled[field > 0] = k
    return filled


def _whole(
    own: UInt8[np.ndarray, "H W"], other: UInt8[np.ndarray, "H W"], share: float
) -> UInt8[np.ndarray, "H W"]:
    """A mask between two.

    Where shapes overlap, the smaller part goes before the larger one that it lies on, and where
    none is, the nearest class fills the gap.
    """
    if share in (0, 1):
        return other if share else own
    ids = np.union1d(own, other)  # unlabelled pixels are like a class
    shapes = _from_large_to_small(own, other, ids, share)
    between = np.array([k for k, _ in shapes])[np.argmax([field for _, field in shapes], 0)]
    for k, field in shapes:
        between[field > 0] = k
    return between


def _from_large_to_small(
    own: UInt8[np.ndarray, "H W"],
    other: UInt8[np.ndarray, "H W"],
    ids: np.ndarray,
    share: float,
) -> list[tuple[np.integer, Distance]]:
    """Classes with their signed distances, in the order in which they are painted."""
    order = sorted(ids, key=lambda k: -((own == k).sum() + (other == k).sum()))
    return [(k, _between(own == k, other == k, share)) for k in order]


def _between(own: Part, other: Part, share: float) -> Distance:
    """The signed distance, positive inside, of a shape between two.

    A part that only one of them has shrinks to its deepest pixel halfway to the other, and outside
    of it every part of both goes before it.
    """
    if share in (0, 1):
        return _signed_distance(other if share else own)
    if not own.any() or not other.any():
        there = _signed_distance(own if own.any() else other)
        weight = 1 - share if own.any() else share
        field = weight * there - (1 - weight) * there.max()
        return np.where(field > 0, field, field - 2 * sum(own.shape))
    a, b = _signed_distance(own), _signed_distance(other)
    way = np.subtract(ndimage.center_of_mass(other), ndimage.center_of_mass(own))
    moved = lambda field, by: ndimage.shift(field, by, order=1, mode="nearest")
    cut = _is_cut(own) or _is_cut(other)
    if not cut and (own & (moved(b, -way) > 0)).sum() > (own & other).sum():
        a, b = moved(a, share * way), moved(b, (share - 1) * way)
    return (1 - share) * a + share * b


def _signed_distance(part: Part) -> Distance:
    """Distance to the nearest pixel outside, less that to the nearest one inside."""
    if part.all():
        return np.full(part.shape, float(sum(part.shape)))  # no pixel is outside
    outside = ndimage.distance_transform_edt(~part)
    return ndimage.distance_transform_edt(part) - outside


def _is_cut(part: Part) -> bool:
    """Whether a part has pixels at the image's border, beyond which it may go on."""
    return bool(part[[0, -1]].any() or part[:, [0, -1]].any())
