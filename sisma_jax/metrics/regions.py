"""How far a picture is organised by a mask, without a trained judge.

Two numbers for models that should follow masks and still leave them many right answers:
`explained_variance` (do the parts lie where the mask says?) and `spread` (do the samples of one
mask differ?). Both mean something only beside the same numbers of real pictures.
"""

import numpy as np
from jaxtyping import Float, UInt8

from sisma_jax.data.classes import CLASSES


def explained_variance(
    images: UInt8[np.ndarray, "n h w 3"], labels: UInt8[np.ndarray, "n h w"]
) -> Float[np.ndarray, " n"]:
    """Return the share of each picture's pixel variance that its mask's regions explain.

    1 - (squared deviations from the mean colour of the pixel's region) / (from the mean colour of
    the picture), summed over pixels and channels: 1 for flat regions, about 0 for a mask that has
    nothing to do with the picture.
    """
    shares = []
    for image, mask in zip(images.astype(np.float64), labels, strict=True):
        total = np.sum((image - image.mean((0, 1))) ** 2)
        within = sum(
            np.sum((region - region.mean(0)) ** 2)
            for label in range(len(CLASSES))
            if len(region := image[mask == label])
        )
        shares.append(1 - within / total)
    return np.array(shares)


def spread(images: UInt8[np.ndarray, "n k h w 3"]) -> Float[np.ndarray, " n"]:
    """Return how much k pictures of one mask differ: the standard deviation of a pixel over the k
    pictures, averaged over pixels and channels, in units of the full range."""
    return images.astype(np.float64).std(axis=1, ddof=1).mean((1, 2, 3)) / 255
