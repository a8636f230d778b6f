"""Resets of the state, by arguments that every implementation understands.

At a reset the decay exp(delta_l A) is to be zero while the input delta_l u_l B_l stays. A step that
replaces delta_l by 2^64, u_l by delta_l u_l / 2^32 and B_l by B_l / 2^32 does both: the decay
underflows to exactly zero, and products with a power of two are exact, unless delta_l u_l or B_l is
below 2^-94 (5e-29), where they lose bits. Step sizes, skip connection and gate are computed outside
of the scan, so u, delta and B are float32 there. All gradients follow by the chain rule.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .pointwise import gate, step_sizes

_STEP = 2.0**64
"""A step size after which nothing remains of a state."""

_SHARE = 2.0**32
"""The square root of it, by which u and B are divided."""

_SLOWEST = -(2.0**-56)
"""A is at most this, so that a decay over _STEP is exp(-256) or less, which is 0 in float32; over
any other step it differs from no decay by less than a rounding error."""


def scan(
    one_scan: Callable,
    resets: jax.Array,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    *,
    delta_softplus,
    **options,
):
    """`one_scan`, an implementation, with the state set to zero before the rows in `resets`."""
    resets = resets[..., None]
    wide_u, delta = u.astype(jnp.float32), step_sizes(delta, delta_bias, delta_softplus)
    wide_B = B.astype(jnp.float32)
    y, last_state = one_scan(
        u=jnp.where(resets, delta * wide_u / _SHARE, wide_u),
        delta=jnp.where(resets, _STEP, delta),
        A=_decaying(A.astype(jnp.float32)),
        B=jnp.where(resets, wide_B / _SHARE, wide_B),
        C=C,
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        **options,
    )
    if D is not None:
        y += D.astype(jnp.float32)[None, None] * wide_u
    return gate(y, z, u.dtype), last_state


def _decaying(A: jax.Array) -> jax.Array:
    """A with the gradient of A: at most _SLOWEST, and not a number where it is positive."""
    bounded = jnp.where(A > 0, jnp.nan, jnp.minimum(A, _SLOWEST))
    return A + lax.stop_gradient(bounded - A)
