"""Row-wise operations before and after the recurrence: step sizes and output gate."""

import jax
import jax.numpy as jnp


def step_sizes(delta, delta_bias, delta_softplus):
    """delta in float32, with the bias added if given and softplus applied if requested."""
    delta = delta.astype(jnp.float32)
    if delta_bias is not None:
        delta += delta_bias.astype(jnp.float32)[None, None]
    return softplus(delta) if delta_softplus else delta


def gate(y, z, dtype):
    """y in `dtype`, multiplied by silu(z) if z is given."""
    if z is not None:
        y *= jax.nn.silu(z.astype(jnp.float32))
    return y.astype(dtype)


@jax.custom_jvp
def softplus(x):
    """log(1 + exp(x)) for float32, to full relative accuracy however small the result.

    With e = exp(-|x|) it equals max(x, 0) + log(1 + e), and log(1 + e) = 2 artanh(s) for
    s = e / (2 + e) <= 1/3. After seven terms the error of the series is below rounding. The
    polynomial vectorises on a CPU, where `log1p` takes three times as long.
    """
    e = jnp.exp(-jnp.abs(x))
    s = e / (2 + e)
    series = 0.0
    for k in reversed(range(7)):
        series = series * (s * s) + 1 / (2 * k + 1)
    return jnp.maximum(x, 0) + 2 * s * series


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx
