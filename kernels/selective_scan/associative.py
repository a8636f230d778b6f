"""All time steps at once by `jax.lax.associative_scan`: the usual form in JAX, for comparison.

Pairs (a, b), which represent h -> a h + b, compose associatively. Every level of the scan holds
arrays of shape (batch, length, channels, state).
"""

import jax.numpy as jnp
from jax import lax

from .ordering import in_rows, in_sequence, visited_rows
from .pointwise import gate, step_sizes


def scan(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, h0, order, reverse):
    """See `selective_scan` in `api.py`."""
    rows = visited_rows(order, u.shape[1], reverse)
    u_s, delta_s, B_s, C_s = (
        in_sequence(x.astype(jnp.float32), rows)
        for x in (u, step_sizes(delta, delta_bias, delta_softplus), B, C)
    )
    a = jnp.exp(delta_s[..., None] * A.astype(jnp.float32)[None, None])
    b = (delta_s * u_s)[..., None] * B_s[:, :, None, :]
    if h0 is not None:
        b = jnp.concatenate([b[:, :1] + a[:, :1] * h0.astype(jnp.float32)[:, None], b[:, 1:]], 1)

    def compose(first, second):
        (a1, b1), (a2, b2) = first, second
        return a2 * a1, a2 * b1 + b2

    _, h = lax.associative_scan(compose, (a, b), axis=1)
    y = in_rows(jnp.sum(h * C_s[:, :, None, :], axis=-1), rows)
    if D is not None:
        y += D.astype(jnp.float32)[None, None] * u.astype(jnp.float32)
    return gate(y, z, u.dtype), h[:, -1]
