"""The selective scan as one loop over time, with its own gradient. The default without a kernel.

Every step updates the whole state, laid out (batch, state, channels) so that the widest axis is
contiguous. With a_l = exp(delta_l A), the forward recurrence is

    (1)  h_l = a_l h_{l-1} + delta_l u_l B_l                                             h_0 given
    (2)  y_l = sum_n C_l h_l + D u_l

Bars denote derivatives of a scalar loss. The adjoint of the state runs backwards in time,

    (3)  hbar_l = C_l ybar_l + a_{l+1} hbar_{l+1}     at the last step the second term is the
                                                      cotangent of the last state

and every gradient is a sum over hbar_l, w_l = a_l hbar_l h_{l-1} or q_l = sum_n B_l hbar_l:

    (4)  Cbar_l = sum_d h_l ybar_l
    (5)  Bbar_l = sum_d hbar_l delta_l u_l
    (6)  ubar_l = delta_l q_l + D ybar_l
    (7)  deltabar_l = u_l q_l + sum_n w_l A
    (8)  Abar = sum_{b,l} w_l delta_l
    (9)  Dbar = sum_{b,l} u_l ybar_l
    (10) h_0bar = a_1 hbar_1

(4), (7) and (8) need the states, which are recomputed: the forward pass stores h before every
CHUNK steps, and the backward pass visits the chunks from last to first and repeats (1) in each.
The residuals are the arguments and (length / CHUNK, batch, state, channels) floats.

Each step reads and writes its row in place, wherever an order puts it. Neither pass makes permuted
or time-major copies, and the gradient of an order needs no scatters.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .checkpoints import named
from .ordering import one_order_at_a_time, visited_rows
from .pointwise import gate, step_sizes
from .wide import widened

CHUNK = 16  # the states of one chunk, kept while its adjoint runs, fit in the L2 cache


def scan(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, h0, order, reverse):
    """See `selective_scan` in `api.py`."""
    arrays = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, h0=h0)
    switches = dict(delta_softplus=delta_softplus, order=order, reverse=reverse)
    return scan_twice_given(arrays, widened(arrays), **switches)


def scan_twice_given(arrays, wide, *, delta_softplus, order, reverse):
    """`scan`; the gradients are those of `wide`, the arguments in float32 (see `wide.py`)."""
    batch, length, _ = arrays["u"].shape
    A, h0 = wide["A"].mT, wide["h0"]
    y, last_state = _recurrence(
        [arrays[name] for name in ("u", "B", "C")],
        [wide[name] for name in ("u", "B", "C")],
        step_sizes(wide["delta"], wide["delta_bias"], delta_softplus),
        A,
        wide["D"],
        jnp.zeros((batch, *A.shape)) if h0 is None else h0.mT,
        visited_rows(order, length, reverse),
    )
    return gate(y, wide["z"], arrays["u"].dtype), last_state.mT


@jax.custom_vjp
def _recurrence(read, wide, delta, A, D, h0, rows):
    """(1) and (2) for u, B and C, which are read as they are in `read`; `wide` has their gradients.

    A (state, channels), D and h0 (batch, state, channels) are float32.
    """
    return _recurrence_forward(read, wide, delta, A, D, h0, rows)[0]


def _recurrence_forward(read, wide, delta, A, D, h0, rows):
    (u, B, C), kept = read, (delta, A, D, h0)
    y, last_state, checkpoints = _batchable(_forward, rows)(rows, [u, B, C, *kept])
    return (y, last_state), (read, kept, rows, named(checkpoints))


def _recurrence_backward(residuals, cotangents):
    (u, B, C), kept, rows, checkpoints = residuals
    arrays = [u, B, C, *kept, checkpoints, *cotangents]
    ubar, Bbar, Cbar, *bars = _batchable(_backward, rows)(rows, arrays)
    return None, [ubar, Bbar, Cbar], *bars, None


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def _batchable(function, rows):
    """Avoids `jax.vmap` over rows, which would turn in-place accesses into gathers and scatters."""
    return function if rows is None else one_order_at_a_time(function)


def _forward(rows, arrays):
    """y, the last state, and the state before each chunk."""
    u, B, C, delta, A, D, h0 = arrays
    length = u.shape[1]

    def step(index, carry):
        h, y = carry
        row = index if rows is None else _take(rows, index)
        u_l, delta_l = _read(u, row), _read(delta, row)
        h = _decay(delta_l, A) * h + _outer(_read(B, row), delta_l * u_l)
        y_l = _sum_states(h, _read(C, row))
        if D is not None:
            y_l += D[None] * u_l
        return h, _write(y, y_l, row)

    def chunk(carry, start):
        h, _ = carry
        stop = jnp.minimum(start + CHUNK, length)
        return lax.fori_loop(start, stop, step, carry), h

    y = jnp.zeros(u.shape, jnp.float32)
    (last_state, y), checkpoints = lax.scan(chunk, (h0, y), _chunk_starts(length))
    return y, last_state, checkpoints


def _backward(rows, arrays):
    """The gradients of u, B, C, delta, A, D and h0, in float32."""
    u, B, C, delta, A, D, h0, checkpoints, ybar, last_state_bar = arrays
    length = u.shape[1]

    def recompute(index, carry, start):
        """Repeats (1), keeps the states, and computes (4)."""
        h, states, Cbar = carry
        row = index if rows is None else _take(rows, index)
        u_l, delta_l = _read(u, row), _read(delta, row)
        h = _decay(delta_l, A) * h + _outer(_read(B, row), delta_l * u_l)
        states = _put(states, h, index - start + 1)
        return h, states, _write(Cbar, _sum_channels(h, _read(ybar, row)), row)

    def adjoint(countdown, carry, start, stop, states):
        """(3) and (5) to (8). The carried g is the second term of (3), and finally (10)."""
        g, ubar, deltabar, Abar, Bbar = carry
        index = stop - 1 - (countdown - start)
        row = index if rows is None else _take(rows, index)
        u_l, delta_l, ybar_l = _read(u, row), _read(delta, row), _read(ybar, row)
        hbar = _outer(_read(C, row), ybar_l) + g
        g = _decay(delta_l, A) * hbar
        w = g * _take(states, index - start)
        q = _sum_states(hbar, _read(B, row))
        ubar_l = delta_l * q
        if D is not None:
            ubar_l += D[None] * ybar_l
        deltabar_l = u_l * q + _sum_states(w * A[None], jnp.ones(w.shape[:2], w.dtype))
        return (
            g,
            _write(ubar, ubar_l, row),
            _write(deltabar, deltabar_l, row),
            Abar + w * delta_l[:, None],
            _write(Bbar, _sum_channels(hbar, delta_l * u_l), row),
        )

    def chunk(carry, start_and_state):
        # `states` is scratch. Carrying it avoids allocating and clearing it for every chunk.
        states, Cbar, *adjoints = carry
        start, h = start_and_state
        stop = jnp.minimum(start + CHUNK, length)
        _, states, Cbar = lax.fori_loop(
            start, stop, partial(recompute, start=start), (h, _put(states, h, 0), Cbar)
        )
        step = partial(adjoint, start=start, stop=stop, states=states)
        return (states, Cbar, *lax.fori_loop(start, stop, step, tuple(adjoints))), None

    states = jnp.zeros((CHUNK + 1, *h0.shape), h0.dtype)
    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (u, delta, h0, B)]
    (_, Cbar, h0bar, ubar, deltabar, Abar, Bbar), _ = lax.scan(
        chunk,
        (states, jnp.zeros(C.shape, jnp.float32), last_state_bar, *zeros),
        (_chunk_starts(length), checkpoints),
        reverse=True,
    )
    Dbar = None if D is None else _contract("bld,bld->d", u.astype(jnp.float32), ybar)
    return ubar, Bbar, Cbar, deltabar, Abar.sum(0), Dbar, h0bar


def _chunk_starts(length: int) -> Int[Array, "chunks"]:
    return jnp.arange(0, length, CHUNK, dtype=jnp.int32)


# Indices are never negative; stating that removes the wrap-around arithmetic of every access.
def _take(x, index):
    return lax.dynamic_index_in_dim(x, index, 0, keepdims=False, allow_negative_indices=False)


def _put(x, value, index):
    return lax.dynamic_update_index_in_dim(x, value, index, 0, allow_negative_indices=False)


def _read(x: Float[Array, "batch length width"], row) -> Float[Array, "batch width"]:
    x = lax.dynamic_index_in_dim(x, row, 1, keepdims=False, allow_negative_indices=False)
    return x.astype(jnp.float32)


def _write(x: Float[Array, "batch length width"], value: Float[Array, "batch width"], row):
    value = value.astype(x.dtype)
    return lax.dynamic_update_index_in_dim(x, value, row, 1, allow_negative_indices=False)


def _decay(delta_l, A):
    return jnp.exp(delta_l[:, None] * A[None])


def _outer(over_states, over_channels):
    return over_states[:, :, None] * over_channels[:, None]


# Contractions, because XLA's dots are faster than its reductions on a CPU.
_contract = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _sum_states(x, weights):
    return _contract("bnd,bn->bd", x, weights)


def _sum_channels(x, weights):
    return _contract("bnd,bd->bn", x, weights)
