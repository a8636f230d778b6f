"""How close a picture is to another: PSNR and SSIM, per picture."""

from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from sisma_jax.errors import InputError

Pictures = Num[Array | np.ndarray, "n h w c"]

WINDOW = 11
"""Side of SSIM's Gaussian window, of deviation 1.5 (Wang et al. 2004)."""


def psnr(
    a: Num[Array | np.ndarray, "n h w c"],
    b: Num[Array | np.ndarray, "..."],
    data_range: float | int,
) -> Float[Array, " n"]:
    """Return the peak signal-to-noise ratio of each picture in dB, infinite where they are equal.

    Args:
      a, b: pictures, bytes or floats.
      data_range: largest minus smallest possible value: 255 for bytes, 2 for [-1, 1].

    Raises:
      InputError: if the shapes differ or `data_range` is not positive.
    """
    a, b = _pair(a, b, data_range)
    return 10.0 * jnp.log10(data_range**2 / jnp.mean(jnp.square(a - b), axis=(1, 2, 3)))


def ssim(
    a: Num[Array | np.ndarray, "n h w c"],
    b: Num[Array | np.ndarray, "..."],
    data_range: float | int,
) -> Float[Array, " n"]:
    """Return the structural similarity of each picture in [-1, 1], averaged over its channels.

    Wang's definition: Gaussian window, K1 = 0.01, K2 = 0.03, places where the window fits.

    Args:
      a, b: pictures, bytes or floats, at least `WINDOW` pixels along each side.
      data_range: largest minus smallest possible value: 255 for bytes, 2 for [-1, 1].

    Raises:
      InputError: if the shapes differ, the pictures are smaller than the window, or `data_range`
        is not positive.
    """
    a, b = _pair(a, b, data_range)
    if min(a.shape[1:3]) < WINDOW:
        raise InputError(
            f"pictures of {a.shape[1]} x {a.shape[2]} pixels are smaller than SSIM's window: give "
            f"at least {WINDOW} pixels along each side"
        )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return dm_pix.ssim(a, b, max_val=data_range, filter_size=WINDOW)


def _pair(a: Any, b: Any, data_range: float | int) -> tuple[Array, Array]:
    if a.shape != b.shape:
        raise InputError(
            f"pictures of shapes {a.shape} and {b.shape} cannot be compared: give pairs"
        )
    if not data_range > 0:
        raise InputError(f"data_range is {data_range}: give the span of possible values")
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
