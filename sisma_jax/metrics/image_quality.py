"""PSNR and SSIM of pairs of pictures, computed in float64 on the host.

Both take single pictures (H, W, C), for which they return a scalar, or batches (N, H, W, C).
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float64, Num
from skimage.metrics import structural_similarity

from sisma_jax.common.errors import InputError

WINDOW = 11
"""Side of SSIM's Gaussian window with standard deviation 1.5 (Wang et al. 2004)."""


def psnr(
    a: Num[Array | np.ndarray, "*n h w c"],
    b: Num[Array | np.ndarray, "..."],
    data_range: float | int,
) -> Float64[np.ndarray, "*n"]:
    """Return the peak signal-to-noise ratio of each pair in dB, infinite for equal pictures.

    Args:
      a, b: pictures, uint8 or floats.
      data_range: largest minus smallest possible value: 255 for uint8, 2 for [-1, 1].

    Raises:
      InputError: if the shapes differ or `data_range` is not positive.
    """
    a, b = _pair(a, b, data_range)
    error = np.mean(np.square(a - b), axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(data_range**2 / error))


def ssim(
    a: Num[Array | np.ndarray, "*n h w c"],
    b: Num[Array | np.ndarray, "..."],
    data_range: float | int,
) -> Float64[np.ndarray, "*n"]:
    """Return the structural similarity of each pair in [-1, 1], averaged over channels.

    As defined by Wang et al.: Gaussian window, K1 = 0.01, K2 = 0.03, averaged over positions where
    the window fits. In float32 the variances, small differences of large squares, would be off by
    1e-5, hence float64.

    Args:
      a, b: pictures, uint8 or floats, at least `WINDOW` pixels along each side.
      data_range: largest minus smallest possible value: 255 for uint8, 2 for [-1, 1].

    Raises:
      InputError: if the shapes differ, the pictures are smaller than the window, or `data_range`
        is not positive.
    """
    a, b = _pair(a, b, data_range)
    height, width = a.shape[-3:-1]
    if min(height, width) < WINDOW:
        raise InputError(
            f"pictures of {height} x {width} pixels are smaller than SSIM's window: give at least "
            f"{WINDOW} pixels along each side"
        )
    one = lambda x, y: structural_similarity(
        x, y, data_range=data_range, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (a, b))
    values = [one(x, y) for x, y in zip(*flat, strict=True)]
    return np.array(values, np.float64).reshape(a.shape[:-3])


def _pair(a: Any, b: Any, data_range: float | int) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise InputError(
            f"pictures of shapes {a.shape} and {b.shape} cannot be compared: give pairs"
        )
    if not data_range > 0:
        raise InputError(f"data_range is {data_range}: give the span of possible values")
    return np.asarray(a, np.float64), np.asarray(b, np.float64)
