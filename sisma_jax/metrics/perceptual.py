"""Perceptual distance: LPIPS of pairs of pictures, and its mean over samples of one mask."""

import numpy as np
from jaxtyping import Array, Float, Num

from sisma_jax.common.errors import InputError
from sisma_jax.models.judges.lpips import Lpips


def lpips(
    a: Num[Array | np.ndarray, "n h w 3"], b: Num[Array | np.ndarray, "..."], network: Lpips
) -> Float[Array, " n"]:
    """Return the LPIPS distance of each pair of pictures, 0 for equal ones.

    Args:
      a, b: uint8, or floats in [-1, 1].
      network: result of `load_lpips`.

    Raises:
      InputError: if the shapes differ, or the pictures are too small for the network.
    """
    return network.distance(a, b)


def diversity(images: Num[Array | np.ndarray, "k h w 3"], network: Lpips) -> float:
    """Return the mean LPIPS distance over the k (k - 1) / 2 pairs of k pictures.

    Args:
      images: samples of one mask, uint8 or floats in [-1, 1].
      network: result of `load_lpips`.

    Raises:
      InputError: if there are fewer than two pictures, or they are too small for the network.
    """
    count = len(images)
    if count < 2:
        raise InputError(f"diversity is undefined for {count} pictures: give at least 2")
    pairs = np.triu_indices(count, 1)
    return float(np.asarray(network.pairwise(images), np.float64)[pairs].mean())
