"""How well pictures follow their masks, measured without a trained network.

Three metrics apply to all mask-conditioned models: `explained_variance` (whether parts are where
the mask places them), `spread` (whether samples of one mask differ) and `colour_coherence` (whether
parts that belong together have similar colours). All are meaningful only in comparison with their
values for real pictures. Further functions measure styles and edits: the mean colours of regions,
and the change outside an edited region.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

COHERENT_PAIRS: tuple[tuple[str, str], ...] = (
    ("l_eye", "r_eye"),
    ("l_brow", "r_brow"),
    ("l_ear", "r_ear"),
    ("u_lip", "l_lip"),
    ("skin", "nose"),
    ("skin", "neck"),
    ("skin", "l_ear"),
    ("skin", "r_ear"),
)
"""Names of classes (`data.class_names`) whose colours belong together in a face: our choice."""


def explained_variance(
    images: UInt8[np.ndarray, "n h w 3"], labels: UInt8[np.ndarray, "n h w"]
) -> Float[np.ndarray, " n"]:
    """Return the share of each picture's pixel variance that the regions of its mask explain.

    It is 1 - (squared deviations from the mean colour of the pixel's region) / (squared deviations
    from the mean colour of the picture), each summed over pixels and channels: 1 for flat regions,
    about 0 for an unrelated mask. Unlabelled pixels are a region of their own.
    """
    shares = []
    for image, mask in zip(images.astype(np.float64), labels, strict=True):
        total = np.sum((image - image.mean((0, 1))) ** 2)
        regions = (image[mask == label] for label in np.unique(mask))
        within = sum(np.sum((region - region.mean(0)) ** 2) for region in regions)
        shares.append(1 - within / total if total else 1.0)
    return np.array(shares)


def spread(images: UInt8[np.ndarray, "n k h w 3"]) -> Float[np.ndarray, " n"]:
    """Return the standard deviation of pixels over k pictures of one mask, averaged over pixels and
    channels, as a share of the full range."""
    return images.astype(np.float64).std(axis=1, ddof=1).mean((1, 2, 3)) / 255


def class_colours(
    images: UInt8[np.ndarray, "n h w 3"], labels: UInt8[np.ndarray, "n h w"], num_classes: int
) -> Float[np.ndarray, "n k 3"]:
    """Return the mean colour of each class's pixels, 0 to 255; NaN if a picture has none."""
    colours = np.full((len(images), num_classes, 3), np.nan)
    for i, (image, mask) in enumerate(zip(images, labels, strict=True)):
        flat, pixels = mask.ravel(), image.reshape(-1, 3).astype(np.float64)
        own = flat < num_classes
        count = np.bincount(flat[own], minlength=num_classes)
        for channel in range(3):
            total = np.bincount(flat[own], pixels[own, channel], num_classes)
            colours[i, count > 0, channel] = (total / np.maximum(count, 1))[count > 0]
    return colours


def colour_errors(
    colours: Float[np.ndarray, "n k 3"], wanted: Float[np.ndarray, "n k 3"]
) -> Float[np.ndarray, " k"]:
    """Return the error of mean colours per class, in grey levels.

    It is the root mean square over channels, averaged over the pictures for which both colours are
    known; NaN if there are none.
    """
    error = np.sqrt(np.mean(np.square(colours - wanted), axis=-1))
    seen = ~np.isnan(error)
    total = np.where(seen, error, 0).sum(0)
    return np.where(seen.any(0), total / np.maximum(seen.sum(0), 1), np.nan)


def colour_coherence(
    images: UInt8[np.ndarray, "n h w 3"], labels: UInt8[np.ndarray, "n h w"], names: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Return how far apart the mean colours of two regions are, in grey levels, for COHERENT_PAIRS.

    It is the root mean square difference over channels, averaged over the pictures that have both
    regions. Light from one side separates the colours in real pictures, too, so a value is
    meaningful only beside that of real pictures, from which it may deviate in both directions.

    Args:
      images: the pictures.
      labels: their masks, ids that index `names`.
      names: names of the classes.

    Returns:
      Grey levels, 0 to 255, by pair. A pair is missing if one of its classes is not in `names`, or
      if no picture has both of its regions.
    """
    colours = class_colours(images, labels, len(names))
    place = {name: label for label, name in enumerate(names)}
    pairs = [pair for pair in COHERENT_PAIRS if place.keys() >= set(pair)]
    one, other = (colours[:, [place[pair[side]] for pair in pairs]] for side in (0, 1))
    apart = zip(pairs, colour_errors(one, other).tolist(), strict=True)
    return {pair: levels for pair, levels in apart if not np.isnan(levels)}


def far_from(changed: Bool[np.ndarray, "n h w"], margin: int) -> Bool[np.ndarray, "n h w"]:
    """Return which pixels are more than `margin` rows or columns from every changed one."""
    padded = np.pad(changed, ((0, 0), (margin, margin), (margin, margin)))
    side = 2 * margin + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return ~windows.any((-1, -2))


def rms_change(
    a: UInt8[np.ndarray, "n h w 3"],
    b: UInt8[np.ndarray, "n h w 3"],
    where: Bool[np.ndarray, "n h w"],
) -> float:
    """Return the root mean square difference of a and b at pixels `where`, in grey levels."""
    return float(np.sqrt(np.mean(np.square(a.astype(float) - b.astype(float))[where])))
