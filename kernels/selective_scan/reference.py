"""The reference implementation: the recurrence as it is written, one time step after another.

JAX differentiates it, so its memory grows with (batch, length, channels, state).
"""

import jax.numpy as jnp
from jax import lax

from .ordering import in_rows, in_sequence, visited_rows
from .pointwise import gate, step_sizes


def scan(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, h0, order, reverse):
    """See `selective_scan` in `api.py`."""
    rows = visited_rows(order, u.shape[1], reverse)
    inputs = (
        in_sequence(x.astype(jnp.float32), rows).swapaxes(0, 1)
        for x in (u, step_sizes(delta, delta_bias, delta_softplus), B, C)
    )
    A = A.astype(jnp.float32)
    h0 = jnp.zeros((u.shape[0], *A.shape)) if h0 is None else h0

    def step(h, inputs):
        u_l, delta_l, B_l, C_l = inputs
        decay = jnp.exp(delta_l[:, :, None] * A[None])
        h = decay * h + (delta_l * u_l)[:, :, None] * B_l[:, None, :]
        return h, jnp.sum(h * C_l[:, None, :], axis=-1)

    last_state, y = lax.scan(step, h0.astype(jnp.float32), tuple(inputs))
    y = in_rows(y.swapaxes(0, 1), rows)
    if D is not None:
        y += D.astype(jnp.float32)[None, None] * u.astype(jnp.float32)
    return gate(y, z, u.dtype), last_state
